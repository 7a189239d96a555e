"""What signals ask of a run, and what a second one does."""

import os
import signal
import subprocess
import sys

import pytest

# Prints "saved" where the second signal has not ended it.
PROGRAM = """
import os, signal
from yoloyard.training import interrupt

interrupt.TOGETHER_SECONDS = {seconds}
with interrupt.InterruptRequest(silent=True) as request:
    os.kill(os.getpid(), signal.{first})
    assert request.signal == signal.{first}
    os.kill(os.getpid(), signal.{second})
    print("saved")
"""


@pytest.mark.parametrize(
    ("first", "second", "seconds", "code"),
    [
        ("SIGTERM", "SIGTERM", 60, 0),  # of a cluster, to this process and to its launcher, which passes it on
        ("SIGTERM", "SIGTERM", 0, -signal.SIGTERM),
        ("SIGINT", "SIGINT", 60, -signal.SIGINT),  # Ctrl-C twice: KeyboardInterrupt
        ("SIGUSR2", "SIGUSR1", 60, 0),
    ],
)
def test_a_second_signal_ends_a_run_at_once_if_it_is_another_request(
    first: str, second: str, seconds: float, code: int
) -> None:
    program = PROGRAM.format(first=first, second=second, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stdout) == (code, "saved\n" if code == 0 else "")
