"""A tiny data set, a run that was trained on it, and the command line in this process."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from commands import TINY, Command, exit_code
from yoloyard.demo.write import write_demo
from yoloyard.evaluation.report import plots


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 training and 6 validation images of the demo set at 96 pixels; the data.yaml."""
    return write_demo(tmp_path_factory.mktemp("tiny") / "line", seed=3, train=14, val=6, size=96)


@pytest.fixture
def data(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny set for one test, which may spoil it; the working directory and the cache are the test's."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_set.parent, tmp_path / "line")
    return tmp_path / "line" / "data.yaml"


@pytest.fixture(scope="session")
def trained(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs on the tiny set in `runs/line`, its figures drawn, and in `said` its output."""
    folder, said = tmp_path_factory.mktemp("trained"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("YOLOYARD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert exit_code("train", "--data", tiny_set, "--epochs", 2, *TINY) == 0
    (folder / "said").write_text(said.getvalue())
    return folder


@pytest.fixture
def run_folder(trained: Path, data: Path) -> Path:
    """A copy of that run for one test, beside its copy of the tiny set."""
    shutil.copytree(trained / "runs", "runs")
    return Path("runs/line")


@pytest.fixture(autouse=True)
def figures_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a report takes several times as long as training the tiny network; the run of `trained` has one whole."""
    monkeypatch.setattr(plots, "figure_svg", lambda figure: "<svg></svg>")


@pytest.fixture
def yoloyard(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command here; gives exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = exit_code(*words)
        out, err = capfd.readouterr()
        return code, out, err

    return run
