"""Saving beside training: a thread writes what it is given, one thing after the other."""

import threading
from collections.abc import Callable

from yoloyard.common.errors import UserError

Work = Callable[[], object]


class Writer:
    """Does one piece of work at a time in a thread. One more may wait; a third keeps the caller waiting.

    `done(error)` is called in the caller's thread before the next piece begins. Whatever is no UserError is raised
    there. The thread ends with the process, whatever it is doing.
    """

    def __init__(self, done: Callable[[UserError | None], object]) -> None:
        self._done = done
        self._thread: threading.Thread | None = None
        self._waiting: Work | None = None
        self._error: Exception | None = None  # of the last piece

    def put(self, work: Work) -> None:
        """Do `work` as soon as what came before is done."""
        while self._waiting is not None:
            self._wait()
        self._waiting = work
        self.look()

    def look(self) -> None:
        """See what is done, and begin what waits."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            self._tell()
        if self._thread is None and self._waiting is not None:
            self._thread = threading.Thread(target=self._do, args=(self._waiting,), daemon=True)
            self._waiting = None
            self._thread.start()

    def drain(self) -> None:
        """Wait until nothing is left to do."""
        while self._thread is not None or self._waiting is not None:
            self._wait()

    def finish(self) -> None:
        """Wait until nothing is left to do. Raises the UserError of the last piece in place of telling it."""
        while self._waiting is not None:
            self._wait()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if isinstance(error := self._error, UserError):
                self._error = None
                raise error
            self._tell()

    def stop(self) -> None:
        """Forget what waits, and wait for what is being done."""
        self._waiting = None
        if self._thread is not None:
            self._thread.join()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self.look()

    def _tell(self) -> None:
        error, self._error = self._error, None
        if error is not None and not isinstance(error, UserError):
            raise error
        self._done(error)

    def _do(self, work: Work) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # it is raised in the other thread
            self._error = error
