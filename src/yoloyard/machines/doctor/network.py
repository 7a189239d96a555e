"""The way to the object store: name, connection, TLS, answer, and whether its clock agrees with ours."""

import http.client
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from yoloyard.common.errors import UsageError
from yoloyard.machines.doctor import Finding

TIMEOUT_SECONDS = 10.0
SLOW_SECONDS = 1.0  # to connect
MAX_SKEW_SECONDS = 300  # S3 refuses signatures from 900 on
FAILURES = {  # by step: what it means, and what to do
    "name": ("its name can't be found", "check the address and the DNS servers (/etc/resolv.conf)"),
    "connect": ("no connection", "check the address, its port, the firewall and the proxy"),
    "tls": ("TLS fails", "update ca-certificates, check the clock; a company's proxy needs its own certificate"),
    "answer": ("no answer in HTTP", "check the port and that it speaks http or https as asked"),
}


def measure(endpoint: str) -> dict[str, Any]:
    """Connect once to https://HOST, http://HOST:PORT or HOST:PORT (TLS) and ask for HEAD of its path.

    Seconds to resolve the name, to connect, for TLS and for the answer; its status; `skew`: seconds our clock is
    ahead of the server's. `error` says at which step it failed. Raises UsageError for another kind of address.
    """
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    try:
        host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        host, port = None, 0
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"--network {endpoint!r} is no https://HOST, http://HOST:PORT or HOST:PORT")
    found: dict[str, Any] = {"endpoint": f"{parts.scheme}://{host}:{port}", "error": None, "step": None}
    steps = [step for step in FAILURES if step != "tls" or parts.scheme == "https"]
    moments, connection = [time.perf_counter()], None
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        moments.append(time.perf_counter())
        connection = socket.create_connection((str(address[4][0]), port), TIMEOUT_SECONDS)
        moments.append(time.perf_counter())
        if parts.scheme == "https":
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
            moments.append(time.perf_counter())
        request = f"HEAD {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = http.client.HTTPResponse(connection, method="HEAD")
        answer.begin()
        moments.append(time.perf_counter())
        found["status"] = answer.status
        if date := answer.getheader("Date"):
            found["skew"] = time.time() - parsedate_to_datetime(date).timestamp()
    except (OSError, http.client.HTTPException, ValueError) as error:
        found |= {"error": str(error) or type(error).__name__, "step": [*steps, "answer"][len(moments) - 1]}
    finally:
        if connection:
            connection.close()
    spans = zip(steps, pairwise(moments), strict=False)
    return found | {"seconds": {step: end - begin for step, (begin, end) in spans}}


def check(facts: dict[str, Any]) -> list[Finding]:
    """Any answer is fine but a server's own failure: an object store refuses with 403 whoever has no key."""
    check, title, network = "network", "network to the object store", facts["network"]
    if network is None:
        return [Finding(check, title, "skipped", "only looked at with --network ADDRESS")]
    if network["error"]:
        what, remedy = FAILURES[network["step"]]
        return [Finding(check, title, "problem", f"{network['endpoint']}: {what}: {network['error']}", remedy)]
    steps = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in network["seconds"].items())
    evidence = f"{network['endpoint']}: status {network['status']}; {steps}"
    finding = Finding(check, title, "ok", evidence)
    if network["status"] >= 500:
        finding = Finding(check, title, "problem", evidence, "the server itself fails: ask who runs it")
    elif network["seconds"]["connect"] > SLOW_SECONDS:
        finding = Finding(check, title, "warning", evidence, "keep data on a local disk, or a nearer store")
    if abs(skew := network.get("skew", 0)) <= MAX_SKEW_SECONDS:
        return [finding]
    late = f"this machine's clock differs by {skew:+.0f} s from the server's; signed requests are refused"
    return [finding, Finding("clock-skew", "clock and the server's", "problem", late, "sudo timedatectl set-ntp true")]
