"""`yoloyard watch`: a page of runs that are still going, served on this host from their folders or copies alone."""

import contextlib
import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from yoloyard.commands.runs import find_run
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.run_folder import LAST_VALIDATION, STATUS, RunFolder, find_runs, read_run
from yoloyard.evaluation.report import runs_page
from yoloyard.storage.address import is_address, reasons_said
from yoloyard.storage.copies import Copies

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
REFRESH_SECONDS = 3
FETCH_SECONDS = 30  # between two looks at an object store
FETCHED = ("config.yaml", STATUS, "metrics.jsonl", LAST_VALIDATION)


class CopiedRun:
    """A run as its copies at an object store show it. Raises UsageError or UserError if none can be had there."""

    def __init__(self, address: str, place: Path) -> None:
        self._copies, self._folder = Copies(address.rstrip("/")), place / Path(address).name
        self._folder.mkdir()
        self._problems: list[str] = []
        self._fetch()

    def read(self) -> RunFolder:
        """The run at its newest copy, which is looked for now and then."""
        if time.monotonic() - self._fetched > FETCH_SECONDS:
            try:
                self._fetch()
                self._problems = []
            except UserError as error:
                self._problems = [str(error)]
        run = read_run(self._folder, is_copy=True)
        return dataclasses.replace(run, bytes=self._bytes, problems=run.problems + self._problems)

    def _fetch(self) -> None:
        """Fetch the small files of the run. Raises UserError."""
        self._fetched = time.monotonic()
        with reasons_said(self._copies.address):
            manifests = self._copies.read_manifests()
            if not manifests:
                raise FileNotFoundError("it holds no copy of a run, or none has arrived yet")
            newest = manifests[-1]
            self._bytes = sum(facts["size"] for facts in newest.files.values())
            for name in FETCHED:
                if name in newest.files:
                    self._copies.download(name, self._folder / name)
            note = {"address": self._copies.address, "epoch": newest.epoch}
            (self._folder / "backup.json").write_text(json.dumps(note), encoding="utf-8")


def watch(names: Sequence[str], project: Path, port: int) -> None:
    """Serve the page of the runs of these names, folders or addresses, or of the newest run, until Ctrl-C.

    Raises UsageError or UserError if there is no such run, or if the port is taken.
    """
    names = names or [folder.name for folder in find_runs(project)[-1:]]
    if not names:
        raise UsageError(f"no run is in {project}/; say --project DIR, or name the folder of a run")
    with contextlib.ExitStack() as folders:
        readers = []
        for name in names:
            if is_address(name):
                place = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="yoloyard-")))
                readers.append(CopiedRun(name, place).read)
            else:
                readers.append(partial(read_run, find_run(name, project).folder))
        serving = folders.enter_context(server(readers, port))
        log.info(f"{', '.join(names)}: http://{ADDRESS}:{serving.server_port}/ (Ctrl-C ends it)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            log.info("ended; the runs go on")


def server(readers: Sequence[Callable[[], RunFolder]], port: int) -> ThreadingHTTPServer:
    """A server, on this host alone, of the page of the runs that `readers` give; port 0 is any free one.

    Raises UsageError if the port is taken.
    """
    lock = Lock()
    drawn: list[Any] = [[], {}]  # records of the runs, and their curves

    def page() -> str:
        with lock:
            runs = [read() for read in readers]
            if (records := [run.records for run in runs]) != drawn[0]:
                drawn[:] = records, runs_page.curves(runs)
            return runs_page.render(runs, drawn[1], REFRESH_SECONDS)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            # A page of another site whose name leads here must not read this one.
            if self.headers.get("Host", "").partition(":")[0] not in (ADDRESS, "localhost"):
                self.send_error(403, f"open it as http://{ADDRESS}:PORT/")
            elif self.path != "/":
                self.send_error(404)
            else:
                content = page().encode("utf-8", "backslashreplace")
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the reader has left
                    self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """No line for each request."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise UsageError(f"port {port} can't be had ({error.strerror}): is it in use? Say --port NUMBER") from error
