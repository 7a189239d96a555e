"""One run at a time writes to a run folder."""

from pathlib import Path

import pytest

from commands import TINY, Command
from yoloyard.common import files
from yoloyard.common.files import RunLock


def test_a_live_run_is_left_alone_and_named(data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    new = ["--data", data, "--epochs", 1, "--name", "live", *TINY]
    code, _, err = yoloyard("train", *new)
    assert (code, err) == (0, "")
    last = Path("runs/live/checkpoints/last")
    last.rename(last.with_name(".last.old"))  # as it is for a moment at each checkpoint
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    with monkeypatch.context() as patch, RunLock() as lock:
        lock.take(Path("runs/live"))
        patch.setattr(files, "LOCK_SECONDS", 0)
        for words in (["--resume", "runs/live", "--epochs", 2], ["--resume", "--epochs", 2], [*new, "--exist-ok"]):
            code, _, err = yoloyard("train", *words)
            assert code == 1  # not that of a wrong flag: a cluster tries again
            assert err.startswith("yoloyard: runs/live is in use: another run writes to it")
            assert err.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    code, _, err = yoloyard("train", "--resume", "--epochs", 2)
    assert (code, err) == (0, "")
    assert last.exists()
