"""`yoloyard serve` in a process of its own, on a free port, with a network that can be held up."""

import contextlib
import http.client
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import tiny_network
from commands import start
from tiny_weights import write_tiny_weights

TOKEN = "a-token_of.tests"


def write_gated_weights(folder: Path) -> Path:
    """Tiny weights in `folder` whose network waits as long as there is a file `closed` beside them."""
    head = "    def forward(self, images: Tensor) -> list[Tensor]:\n"
    wait = f"        while os.path.exists({str(folder / 'closed')!r}):\n            time.sleep(0.01)\n"
    assert head in inspect.getsource(tiny_network)
    return write_tiny_weights(folder, replace=head, by=f"{head}        import os, time\n\n{wait}")


def png(height: int, width: int, seed: int = 0) -> bytes:
    """A PNG of some blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pixels = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".png", pixels)[1].tobytes()


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Return as soon as this holds; an error where it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A server that has said its address."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path, token: str | None) -> None:
        self.process, self.folder, self.token, self.lines = process, folder, token, list[str]()
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if found := re.search(r"://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError(self.lines)
        threading.Thread(target=lambda: self.lines.extend(process.stdout or []), daemon=True).start()
        self._pool = ThreadPoolExecutor(100)

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str = "") -> Answer:
        """Send a request, GET without a body and else POST, and read the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent | dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def later(self, path: str, body: Any = None) -> "Future[Answer]":
        """Send a request from a thread."""
        return self._pool.submit(self.ask, path, body)

    def connection(self, *parts: str, body: bytes = b"") -> socket.socket:
        """A connection over which a request has been sent as far as these lines and this body go."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = "".join(f"{part}\r\n" for part in parts)
        connection.sendall(head.encode() + body)
        return connection

    def measured(self) -> dict[str, float]:
        """The values of /metrics, by name with labels."""
        lines = [line for line in self.ask("/metrics").body.decode().splitlines() if line[:1] != "#"]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def value(self, name: str) -> float:
        return self.measured().get(name, 0.0)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the network computes an image that was sent at the beginning, and does not come to an end."""
        gate = self.folder / "closed"
        gate.touch()
        first = self.later("/predict?model=tiny", png(32, 32))
        try:
            eventually(lambda: self.value("yoloyard_computing_requests") == 1)
            yield
        finally:
            gate.unlink()
        assert first.result().status == 200

    def waits(self, number: int) -> None:
        """Return as soon as so many requests wait."""
        eventually(lambda: self.value("yoloyard_queue_requests") == number)


@contextlib.contextmanager
def serving(folder: Path, *words: object, token: str | None = None) -> Iterator[Server]:
    """A server of these files and flags. `folder` holds the gate of `write_gated_weights`."""
    if token:
        (folder / "token").write_text(f"{token}\n")
        words = (*words, "--token-file", folder / "token")
    process = start("serve", *words, "--port", 0, variables={"OMP_NUM_THREADS": str(os.cpu_count())})
    try:
        yield Server(process, folder, token)
    finally:
        with contextlib.suppress(FileNotFoundError):
            (folder / "closed").unlink()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
