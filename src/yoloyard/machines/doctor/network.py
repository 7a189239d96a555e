"""The way to the object store: name, connection, TLS, answer, and whether its clock agrees with ours."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from yoloyard.common.errors import UsageError
from yoloyard.machines.doctor.finding import Finding

TIMEOUT = 10.0  # seconds
SLOW = 1.0  # seconds to connect
SKEW = 300  # seconds; S3 refuses signatures from 900 on


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
    found: dict[str, Any] = {"endpoint": f"{parts.scheme}://{host}:{port}", "error": None, "step": None, "seconds": {}}
    step, begin = "name", time.perf_counter()

    def done() -> None:
        nonlocal begin
        found["seconds"][step] = time.perf_counter() - begin
        begin = time.perf_counter()

    connection = None
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        done()
        step = "connect"
        connection = socket.create_connection((str(address[4][0]), port), TIMEOUT)
        done()
        if parts.scheme == "https":
            step = "tls"
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
            done()
        step = "answer"
        request = f"HEAD {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = http.client.HTTPResponse(connection, method="HEAD")
        answer.begin()
        done()
        found["status"] = answer.status
        if date := answer.getheader("Date"):
            found["skew"] = time.time() - parsedate_to_datetime(date).timestamp()
    except (OSError, http.client.HTTPException, ValueError) as error:
        found |= {"error": str(error) or type(error).__name__, "step": step}
    finally:
        if connection:
            connection.close()
    return found


def check(facts: dict[str, Any]) -> list[Finding]:
    """Any answer will do (an object store refuses who has no key with 403), but for a server's own failure."""
    title, network = "network to the object store", facts["network"]
    if network is None:
        return [Finding("network", title, "skipped", "only looked at with --network ADDRESS")]
    if network["error"]:
        what, remedy = {
            "name": ("its name can't be found", "check the address and the DNS servers (/etc/resolv.conf)"),
            "connect": ("no connection", "check the address, its port, the firewall and the proxy"),
            "tls": (
                "TLS fails",
                "update ca-certificates, check the clock; a company's proxy needs its own certificate",
            ),
            "answer": ("no answer in HTTP", "check the port and that it speaks http or https as asked"),
        }[network["step"]]
        return [Finding("network", title, "problem", f"{network['endpoint']}: {what}: {network['error']}", remedy)]
    steps = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in network["seconds"].items())
    evidence = f"{network['endpoint']}: status {network['status']}; {steps}"
    findings = []
    if network["status"] >= 500:
        findings.append(Finding("network", title, "problem", evidence, "the server itself fails: ask who runs it"))
    elif network["seconds"]["connect"] > SLOW:
        findings.append(Finding("network", title, "warning", evidence, "keep data on a local disk, or a nearer store"))
    else:
        findings.append(Finding("network", title, "ok", evidence))
    if abs(network.get("skew", 0)) > SKEW:
        late = (
            f"this machine's clock differs by {network['skew']:+.0f} s from the server's; signed requests are refused"
        )
        findings.append(
            Finding("clock-skew", "clock and the server's", "problem", late, "sudo timedatectl set-ntp true")
        )
    return findings
