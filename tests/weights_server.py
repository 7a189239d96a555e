"""A server that publishes one file, as well or as badly as a test wants."""

import contextlib
import hashlib
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Answer = Callable[["_Handler"], None]


def weights_content(number: int) -> bytes:
    """A file of torch.save of some 100 kB."""
    file = io.BytesIO()
    torch.save({"weight": torch.full((25_000,), float(number))}, file)
    return file.getvalue()


@dataclass
class Published:
    """What the server says; `answers` come before all else, one a request."""

    content: bytes
    has_ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)  # beside those that it makes
    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path and headers of each request
    address: str = ""

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'

    def ranges(self) -> list[str | None]:
        """What was asked for of the file in each request; None: all of it."""
        return [headers.get("Range") for _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    published: Published

    def do_GET(self) -> None:
        published = self.published
        published.asked.append((self.path, dict(self.headers)))
        if published.answers:
            published.answers.pop(0)(self)
        else:
            self.give_all()

    def give_all(self, length: int | None = None, pause: Callable[[], Any] = lambda: None) -> None:
        """The file, or the part that is asked for, as HTTP demands; of that `length` bytes, after `pause`."""
        content, start = self.published.content, 0
        headers = {"ETag": self.published.etag} | self.published.headers
        condition = self.headers.get("If-Range")
        if self.published.has_ranges and "Range" in self.headers and condition in headers.values():
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_error(416)
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.give(206 if start else 200, content[start:], headers, length, pause)

    def give(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        length: int | None = None,
        pause: Callable[[], Any] = lambda: None,
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:length])
        self.wfile.flush()
        pause()

    def log_message(self, format: str, *args: object) -> None:
        pass


def cut(length: int) -> Answer:
    """The connection ends after so many bytes of what was asked for."""
    return lambda handler: handler.give_all(length)


def silent(length: int) -> Answer:
    """Nothing comes after so many bytes, and the connection stays."""
    return lambda handler: handler.give_all(length, lambda: threading.Event().wait(3))


def slow(pieces: int, seconds: float) -> Answer:
    """All comes, in pieces with a pause before each."""

    def answer(handler: _Handler) -> None:
        content = handler.published.content
        handler.give(200, content, {}, 0)
        for number in range(pieces):
            time.sleep(seconds)
            handler.wfile.write(content[number * len(content) // pieces : (number + 1) * len(content) // pieces])

    return answer


def redirect(address: str) -> Answer:
    return lambda handler: handler.give(302, b"", {"Location": address})


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: handler.give(code, body, headers)


@contextlib.contextmanager
def publishing(content: bytes, certificate: tuple[str, str] | None = None) -> Iterator[Published]:
    """Within the context a server of `content` on this host, over TLS with `certificate`: files of it and its key."""
    published = Published(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"published": published}))
    server.daemon_threads, server.block_on_close = True, False
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    published.address = f"http{'s' * (certificate is not None)}://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield published
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
