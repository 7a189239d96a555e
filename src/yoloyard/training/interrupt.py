"""Ctrl-C, SIGTERM, a closed terminal: the first asks a run to finish its step and save, the second ends it at once."""

import os
import signal
import threading
from contextlib import ExitStack
from types import FrameType
from typing import Self

from yoloyard.common.errors import UserError


class Interrupted(UserError):  # noqa: N818  # it is no error
    """The run was asked to stop and has saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class InterruptRequest:
    """While entered, `signal` is the number of the signal that came, or None."""

    def __init__(self, silent: bool = False) -> None:
        self.signal: int | None = None
        self._silent = silent
        self._handlers = ExitStack()  # brings the former ones back

    def __enter__(self) -> Self:
        # Python lets only the main thread handle signals; elsewhere whoever started the thread decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                    self._handlers.callback(signal.signal, number, signal.signal(number, self._ask))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def is_asked(self) -> bool:
        """Has a signal come?"""
        return self.signal is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._silent:
            os.write(2, b"\nfinishing this step, then saving; again to stop at once\n")
        self._handlers.close()
