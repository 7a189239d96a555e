"""What predict finds in folders and by patterns: the user's images, not those of other programs nor its own results."""

import os
from pathlib import Path

import pytest

from yoloyard.commands.sources import find_sources
from yoloyard.common.errors import UsageError
from yoloyard.common.files import new_run_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the program is in: two images, and some that are none of the user's."""
    monkeypatch.chdir(tmp_path)
    names = ("a.jpg", "b/c.jfif", ".git/d.png", "b/@eaDir/c.jpg/e.jpg", "$RECYCLE.BIN/f.jpg", "env/lib/g.png")
    for name in (*names, "env/pyvenv.cfg", "h.heic", ".i.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for _ in range(2):
        (new_run_folder(Path("runs"), "predict") / "a.jpg").touch()
    return tmp_path


@pytest.mark.parametrize("word", [".", "HERE", "./**/*.j*", "**/*.j*"])
def test_results_and_folders_of_other_programs_are_no_sources(here: Path, word: str) -> None:
    sources = find_sources([word.replace("HERE", str(here))])
    assert sorted(os.path.relpath(source.address) for source in sources) == ["a.jpg", "b/c.jfif"]


def test_what_is_passed_over_is_said_once(here: Path, said: list[str]) -> None:
    find_sources(["."])
    (line,) = said
    assert line.startswith(".: passed over: 1 file of kinds that are not read (.heic 1); 6 folders (")
    assert all(name in line for name in (".git", "@eaDir", "$RECYCLE.BIN", "env", "predict"))


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("runs/predict", ["runs/predict/a.jpg"]),
        ("runs/predict/*.jpg", ["runs/predict/a.jpg"]),
        (".git", [".git/d.png"]),
        (".git/*", [".git/d.png"]),
        ("b/@eaDir", ["b/@eaDir/c.jpg/e.jpg"]),
        ("b/@eaDir/**/*.jpg", ["b/@eaDir/c.jpg/e.jpg"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_folder_that_is_named_is_looked_at_whatever_it_is(word: str, found: list[str]) -> None:
    assert [source.address for source in find_sources([word])] == found


@pytest.mark.usefixtures("here")
def test_a_folder_of_results_alone_says_why_it_has_no_images() -> None:
    with pytest.raises(UsageError, match=r"no images or videos in the folder runs; passed over: 2 folders \(.*predict"):
        find_sources(["runs"])
