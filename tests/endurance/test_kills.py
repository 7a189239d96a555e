"""A run that is killed again and again ends as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_five_kills_change_no_figure() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "5", "--epochs", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills survived" in done.stdout
    assert "equal bit for bit: True" in done.stdout
