"""A run that is killed again and again ends as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "backup"), [(5, []), (3, ["--backup"])], ids=["folder", "copies"])
def test_a_few_kills_change_no_figure(kills: int, backup: list[str]) -> None:
    """Each run goes on from its folder, or on a bare machine from its copies."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", str(kills), "--epochs", "12", *backup]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills survived" in done.stdout
    assert "equal bit for bit: True" in done.stdout
