"""What signals ask of a run.

Ctrl-C, SIGTERM, a closed terminal: the first asks it to finish its step, save and end, the second ends it at once.
SIGUSR1, which clusters send some time before they end a job, asks it to save and go on. HOSTS_CHANGE, which the
launcher sends, asks it to save and end, since it is started again with other hosts.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Self

from yoloyard.common.errors import UserError

HOSTS_CHANGE = signal.SIGUSR2
TOGETHER_SECONDS = 2.0  # within which a cluster's SIGTERM comes twice: to all processes, and by their launcher


class Interrupted(UserError):  # noqa: N818  # it is no error
    """The run was asked to stop and has saved its state."""

    def __init__(self, message: str, number: int, asked_at: float | None = None) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
        self.asked_at = time.monotonic() if asked_at is None else asked_at


class InterruptRequest:
    """While entered, `signal` is the number of the signal that asks to end, or None."""

    def __init__(self, silent: bool = False) -> None:
        self.signal: int | None = None
        self.asked_at: float | None = None  # monotonic; None where the signal came to another process
        self.saved_at = time.monotonic()
        self.is_warned = False  # that the process may soon be ended (SIGUSR1), until `save` has told it
        self._silent, self._wants_save = silent, False
        self._handlers = ExitStack()  # brings the former ones back

    def __enter__(self) -> Self:
        # Python lets only the main thread handle signals; elsewhere whoever started the thread decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, HOSTS_CHANGE):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                    self._heed(number, self._ask)
            self._heed(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def is_asked(self) -> bool:
        """Has a signal come?"""
        return self.signal is not None

    def takes_save(self, minutes: float) -> bool:
        """Is a save due, by a signal or since `minutes` (0: never) have passed? The next call asks for another one."""
        now, wanted = time.monotonic(), self._wants_save
        if 0 < 60 * minutes < now - self.saved_at:
            self.saved_at, wanted = now, True
        self._wants_save = False
        return wanted

    def _heed(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handlers.callback(signal.signal, number, signal.signal(number, handler))

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._wants_save = self.is_warned = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal, self.asked_at = number, time.monotonic()
        if not self._silent and number != HOSTS_CHANGE:
            os.write(2, b"\nfinishing this step, then saving; again to stop at once\n")
        self._handlers.close()
        self._heed(signal.SIGUSR1, self._ask_to_save)  # it must not end the process that saves
        self._heed(signal.SIGTERM, self._ask_again)

    def _ask_again(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - (self.asked_at or 0) > TOGETHER_SECONDS:
            self._handlers.close()
            os.kill(os.getpid(), number)
