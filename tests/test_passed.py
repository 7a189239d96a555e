"""Long tests are run again where a file that they depend on has changed, and each of them is in a group."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import passed
from passed import GROUPS, ROOT, SKIPPED, Group

TESTS = ROOT / "tests"


@dataclass(frozen=True)
class Fake(Group):
    """A group that ends with this status, or writes a file meanwhile."""

    status: int = 0
    written: Path | None = None

    def run(self) -> int:
        print("it ran")
        if self.written:
            self.written.write_text("changed while the tests ran")
        return self.status


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "tests").mkdir()
    for name in "abcdefg":
        (tmp_path / "src" / f"{name}.py").write_text(name)
    (tmp_path / "src" / "notes.txt").write_text("no part of it")
    return tmp_path


def run(root: Path, *names: str, status: int = 0, written: Path | None = None) -> int:
    return passed.main(names, {"some": Fake((), ("src/**/*.py",), status=status, written=written)}, root)


def test_a_group_runs_until_it_has_passed_and_then_where_a_file_has_changed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*names: str) -> str:
        assert run(root, *names) == 0
        return capsys.readouterr().out

    assert said() == (
        "some: runs; changed since it passed: src/a.py, src/b.py, src/c.py, src/d.py, src/e.py and 2 more\nit ran\n"
    )
    assert said() == "some: passed with these 7 files before, so not run\n"
    assert said("some") == "some: runs; nothing has changed\nit ran\n"
    (root / "src" / "notes.txt").write_text("changed")
    assert "not run" in said()
    (root / "src" / "a.py").write_text("changed")
    (root / "src" / "b.py").unlink()
    (root / "src" / "new.py").write_text("new")
    assert "changed since it passed: src/a.py, src/b.py, src/new.py\n" in said()
    assert "not run" in said()


@pytest.mark.parametrize(("status", "ends"), [(1, 1), (SKIPPED, 0)])
def test_a_group_that_fails_or_is_skipped_is_not_noted(root: Path, status: int, ends: int) -> None:
    assert run(root, status=status) == ends
    assert not passed.note_of("some", root).exists()
    assert run(root) == 0
    (root / "src" / "a.py").write_text("changed")
    before = passed.note_of("some", root).read_text()
    assert run(root, status=status) == ends
    assert passed.note_of("some", root).read_text() == before


def test_what_changes_while_the_tests_run_was_not_tested(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, written=root / "src" / "a.py") == 0
    capsys.readouterr()
    assert run(root) == 0
    assert "changed since it passed: src/a.py\n" in capsys.readouterr().out


def test_every_slow_test_is_in_one_group() -> None:
    slow = [
        path for path in TESTS.rglob("test_*.py") if "mark.slow" in path.read_text() and path.name != "test_passed.py"
    ]
    assert len(slow) > 5
    for path in slow:
        places = [place for group in GROUPS.values() for place in group.tests]
        assert sum(path == ROOT / place or ROOT / place in path.parents for place in places) == 1, path


@pytest.mark.parametrize("name", GROUPS)
def test_every_pattern_of_a_group_finds_a_file(name: str) -> None:
    for pattern in (*GROUPS[name].needs, *GROUPS[name].tests, *passed.EVERYWHERE):
        assert next(ROOT.glob(pattern), None), pattern
    files = GROUPS[name].files(ROOT)
    assert "constraints.txt" in files
    assert not [path for path in files if "__pycache__" in path]
