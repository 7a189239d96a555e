"""`yoloyard serve`: from files to a server that runs until SIGTERM or Ctrl-C, and then answers what it has accepted."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from yoloyard.common.cores import usable_cores
from yoloyard.common.errors import UsageError, UserError
from yoloyard.cpu.memory import reuse_memory
from yoloyard.serving.app import make_app
from yoloyard.serving.limits import EXCHANGE_SECONDS, HEAD_SECONDS
from yoloyard.serving.metrics import Metrics
from yoloyard.serving.served import Served, named_files

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """A connection that is closed where its client sends no request, or does not take the answer."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_in(HEAD_SECONDS)

    def on_response_complete(self) -> None:
        self._look_in(HEAD_SECONDS)  # before the next one, which may have come already, begins below
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._look, self.cycle)

    def _look(self, before: Any) -> None:
        if self.cycle is before or self.cycle.response_complete:  # no request since, or one that takes too long
            self.transport.abort()
        else:
            self._look_in(EXCHANGE_SECONDS)


def serve(
    files: Sequence[str],
    host: str,
    port: int,
    max_batch: int,
    queue: int,
    threads: int | None,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    suppression: str | None = None,
) -> None:
    """Serve the networks in `files` until SIGTERM or Ctrl-C; requests that were accepted are answered then.

    `suppression`: "on" or "off" for all of them; None: as each file says. Raises UsageError or UserError for files that
    can't be used, and where the address is taken.
    """
    named = named_files(files)
    token = read_token(token_file) if token_file else None
    tls = tls_files(tls_cert, tls_key)
    threads = threads or min(torch.get_num_threads(), usable_cores())
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)  # several images are decoded at a time
    with bound(host, port) as listener, ThreadPoolExecutor(threads, "decode") as decoders:
        metrics = Metrics()
        models = {name: Served(name, file, max_batch, metrics, decoders, suppression) for name, file in named.items()}
        for served in models.values():
            reuse_memory(served.model.network.precision)
        config = uvicorn.Config(
            make_app(models, queue, metrics, token),
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=HEAD_SECONDS,
            **tls,
        )
        server = uvicorn.Server(config)

        def stop(number: int, frame: object) -> None:
            server.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn has handlers of its own, and raises again at the end
            signal.signal(number, stop)
        try:
            listener.listen(config.backlog)
        except OSError as error:  # after binding another program was quicker
            raise taken(host, port, error) from error
        shown_host, shown_port = listener.getsockname()[:2]
        shown_host = f"[{shown_host}]" if ":" in shown_host else shown_host
        log.info(f"{', '.join(models)}: {'https' if tls else 'http'}://{shown_host}:{shown_port}/ (Ctrl-C ends it)")
        if token is None:
            log.info("open to all who reach this address: no token is asked for (--token-file FILE asks for one)")
        server.run([listener])
    log.info("ended at once" if server.force_exit else "ended; all that was accepted is answered")


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet. Raises UserError where it can't be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise taken(host, port, error) from error
    return listener


def taken(host: str, port: int, error: Exception) -> UserError:
    """What is said where an address can't be had."""
    return UserError(f"{host}:{port} can't be served ({error}): is it in use? Say --port NUMBER or --host ADDRESS")


def read_token(path: Path) -> bytes:
    """The token in a file. Raises UserError if there is none."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise UserError(f"the token can't be read: {path}: {error.strerror}") from error
    if not token or any(byte <= 32 or byte > 126 for byte in token):
        raise UserError(f"{path} must hold a token of letters, digits and signs, without spaces, in one line")
    return token


def tls_files(cert: Path | None, key: Path | None) -> dict[str, Any]:
    """uvicorn's settings for the files of TLS; none without. Raises UsageError or UserError."""
    if not cert and not key:
        return {}
    if not cert or not key:
        raise UsageError("TLS needs two files: --tls-cert FILE and --tls-key FILE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{cert} with {key} can't be used for TLS: {reason}") from error
    return {"ssl_certfile": cert, "ssl_keyfile": key}
