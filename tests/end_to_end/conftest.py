"""A tiny data set, and the command line run in this process or in one of its own."""

import shutil
from pathlib import Path

import pytest

from commands import Command
from yoloyard.cli import main
from yoloyard.data.demo import write_demo


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 training and 6 validation pictures of the demo set at 96 pixels; the data.yaml."""
    return write_demo(tmp_path_factory.mktemp("tiny") / "line", seed=3, train=14, val=6, size=96)


@pytest.fixture
def data(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny set for one test, which may spoil it; the working directory and the cache are the test's."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_set.parent, tmp_path / "line")
    return tmp_path / "line" / "data.yaml"


@pytest.fixture
def yoloyard(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command here; gives exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run
