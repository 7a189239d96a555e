"""Saving beside training: a thread writes what it is given, one thing after the other."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from yoloyard.common.errors import UserError

Work = Callable[[], object]


class Writer:
    """Does one piece of work at a time in a thread. One more may wait; a third keeps the caller waiting.

    `done(error)` is called in the caller's thread before the next piece begins. Whatever is no UserError is raised
    there.
    """

    def __init__(self, done: Callable[[UserError | None], object]) -> None:
        self._done = done
        self._thread = ThreadPoolExecutor(1)  # the same one always: each new one would take memory of its own
        self._doing: Future[object] | None = None
        self._waiting: Work | None = None

    def put(self, work: Work) -> None:
        """Do `work` as soon as what came before is done."""
        while self._waiting is not None:
            self._wait()
        self._waiting = work
        self.look()

    def look(self) -> None:
        """See what is done, and begin what waits."""
        if self._doing is not None and self._doing.done():
            self._tell()
        if self._doing is None and self._waiting is not None:
            self._doing, self._waiting = self._thread.submit(self._waiting), None

    def drain(self) -> None:
        """Wait until nothing is left to do."""
        while self._doing is not None or self._waiting is not None:
            self._wait()

    def finish(self) -> None:
        """Wait until nothing is left to do. Raises the UserError of the last piece in place of telling it."""
        while self._waiting is not None:
            self._wait()
        if self._doing is not None:
            if isinstance(error := self._doing.exception(), UserError):
                self._doing = None
                raise error
            self._tell()

    def stop(self) -> None:
        """Forget what waits, and wait for what is being done."""
        self._waiting = None
        if self._doing is not None:
            wait([self._doing])

    def _wait(self) -> None:
        if self._doing is not None:
            wait([self._doing])
        self.look()

    def _tell(self) -> None:
        assert self._doing is not None
        error, self._doing = self._doing.exception(), None
        if error is not None and not isinstance(error, UserError):
            raise error
        self._done(error)
