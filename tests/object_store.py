"""A real S3 server over HTTP (moto's), and a proxy before it in which requests go wrong."""

import contextlib
import http.client
import logging
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import obstore
from moto.server import ThreadedMotoServer

from yoloyard.storage.address import open_store

BUCKET = "runs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "KEYOFTHETESTS0000001",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests-0000000000000000001",
    "AWS_REGION": "us-east-1",
}

Fault = Callable[["Request"], "tuple[int, str] | str | None"]


class Request:
    """A request at the proxy, by its method and path, with the headers."""

    def __init__(self, method: str, path: str, headers: Any) -> None:
        self.method, self.path, self.headers = method, path, headers


def no_fault(request: Request) -> None:
    """All goes well."""


class Proxy:
    """Hands requests on to a server at `port`. `fault(request)` may give a status and an error code to answer with,
    "cut" (the connection ends in the middle of what is sent), "flip" (a byte changes on the way), "lost" (the server
    does it, its answer is lost) or "slow".
    """

    def __init__(self, port: int) -> None:
        self.fault: Fault = no_fault
        self.server_port, self.port = port, 0
        self.sent_bytes, self.requests, self.failed = 0, 0, 0
        self.start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the same port as before."""
        proxy, self._is_up = self, True

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def answer(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._is_up = False
        self._server.shutdown()
        self._server.server_close()

    def handle(self, handler: Any) -> None:
        """Answer a request."""
        if not self._is_up:  # a connection from before
            handler.close_connection = True
            handler.connection.close()
            return
        length = int(handler.headers.get("Content-Length", 0))
        fault = self.fault(Request(handler.command, handler.path, handler.headers))
        self.requests, self.failed = self.requests + 1, self.failed + (fault is not None)
        if fault == "cut":
            handler.rfile.read(length // 2)
            self.sent_bytes += length // 2
            handler.close_connection = True
            handler.connection.close()
            return
        body = handler.rfile.read(length)
        self.sent_bytes += length
        if isinstance(fault, tuple):
            status, code = fault
            key = CREDENTIALS["AWS_ACCESS_KEY_ID"]  # as S3 does
            text = f"<Error><Code>{code}</Code><AWSAccessKeyId>{key}</AWSAccessKeyId></Error>"
            reply(handler, status, {}, text.encode())
            return
        if fault == "slow":
            threading.Event().wait(0.2 + length / 20_000_000)
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        server = http.client.HTTPConnection("127.0.0.1", self.server_port)
        server.request(handler.command, handler.path, body, dict(handler.headers))
        answer = server.getresponse()
        content = answer.read()
        if fault == "lost":
            handler.close_connection = True
            handler.connection.close()
            return
        reply(handler, answer.status, dict(answer.getheaders()), content)


def reply(handler: Any, status: int, headers: dict[str, str], content: bytes) -> None:
    """Send an answer; one to HEAD has no content."""
    handler.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in ("transfer-encoding", "connection", "content-length"):
            handler.send_header(name, value)
    has_content = handler.command != "HEAD"
    handler.send_header("Content-Length", str(len(content)) if has_content else headers.get("Content-Length", "0"))
    handler.end_headers()
    if has_content:
        handler.wfile.write(content)


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """moto's server, which holds nothing until `make_empty`; its port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        yield port
    finally:
        server.stop()


def make_empty(port: int) -> None:
    """Remove all that moto's server holds, and make an empty bucket."""
    for method, path in (("POST", "moto-api/reset"), ("PUT", BUCKET)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", method=method)
        urllib.request.urlopen(request).close()


def paths_below(address: str) -> set[str]:
    """The objects below an address."""
    return {each["path"] for chunk in obstore.list(open_store(address)) for each in chunk}
