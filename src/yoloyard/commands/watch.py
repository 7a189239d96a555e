"""`yoloyard watch`: a page of runs that are still going, served on this host from their folders alone."""

import contextlib
import logging
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from markupsafe import Markup

from yoloyard.commands.runs import classes_of, differing_settings, find_run
from yoloyard.common.errors import UsageError
from yoloyard.common.run_folder import RunFolder, find_runs, read_run
from yoloyard.evaluation.report.runs_page import curves, runs_page

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
OWN_NAMES = (ADDRESS, "localhost")
REFRESH_SECONDS = 3


class LivePage:
    """The page of some runs, as their folders are when it is asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders, self._lock = folders, Lock()
        self._drawn: tuple[list[object], dict[str, Markup]] = [], {}  # records, and their curves

    def html(self) -> str:
        """The page of this moment. Curves are drawn only where there is another epoch."""
        runs: list[RunFolder] = [read_run(folder) for folder in self._folders]
        with self._lock:
            records: list[object] = [run.records for run in runs]
            if records != self._drawn[0]:
                self._drawn = records, curves(runs)
            return runs_page(runs, self._drawn[1], differing_settings(runs), classes_of(runs), REFRESH_SECONDS)


def watch(names: Sequence[str], project: Path, port: int) -> None:
    """Serve the page of the runs of these names, without names of the one that was started last, until Ctrl-C.

    Raises UsageError if there is no such run, or if the port is taken.
    """
    folders = [find_run(name, project).folder for name in names] or find_runs(project)[-1:]
    if not folders:
        raise UsageError(f"no run is in {project}/; say --project DIR, or name the folder of a run")
    with server(LivePage(folders), port) as serving:
        shown = ", ".join(folder.name for folder in folders)
        log.info(f"{shown}: http://{ADDRESS}:{serving.server_port}/ (Ctrl-C ends it)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            log.info("ended; the runs go on")


def server(page: LivePage, port: int) -> ThreadingHTTPServer:
    """A server of that page on this host alone; port 0 is any free one. Raises UsageError if the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            # A page of another site whose name leads here must not read this one.
            if self.headers.get("Host", "").partition(":")[0] not in OWN_NAMES:
                self.send_error(403, f"open it as http://{ADDRESS}:PORT/")
            elif self.path != "/":
                self.send_error(404)
            else:
                content = page.html().encode("utf-8", "backslashreplace")
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the reader has left
                    self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """No line for each request."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise UsageError(f"port {port} can't be had ({error.strerror}): is it in use? Say --port NUMBER") from error
