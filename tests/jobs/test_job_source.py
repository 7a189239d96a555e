"""A repository on its way: commit and changes arrive as they are, the user's repository stays as it was."""

import subprocess
from pathlib import Path

import pytest
from user_repository import git, make_repository

from yoloyard.common.errors import UsageError
from yoloyard.jobs.source import BUNDLE, CHECKOUT, PATCH, Source, find_source


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A repository whose path has spaces and Chinese letters."""
    folder = tmp_path / "my 项目"
    make_repository(folder, has_data=False)
    return folder


def arrive(source: Source, host: Path, old: str | None = None) -> Path:
    """Bring it to a host, as a place does; returns the checkout there."""
    host.mkdir(exist_ok=True)
    source.bundle(host / BUNDLE, old)
    (host / PATCH).write_bytes(source.patch or b"")
    (host / "source.shallow").write_bytes(source.shallow or b"")
    return check_out(source, host)


def check_out(source: Source, host: Path) -> Path:
    subprocess.run(["sh", "-c", CHECKOUT, "sh", source.commit], cwd=host, check=True, capture_output=True)
    return host / "source"


def files_in(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_commit_and_changes_arrive_and_nothing_of_the_user_changes(top: Path, tmp_path: Path, said: list[str]) -> None:
    (top / "my_model.py").write_text("x = 2\n")  # as long as before, a moment after the commit
    (top / "weights.bin").write_bytes(bytes(range(256)))
    (top / "jobs" / "new 文.py").write_text("y\n")
    (top / "gone.py").write_text("z\n")
    git(top, "add", "gone.py")
    (top / "jobs" / "a.yaml").unlink()
    (top / "noise.log").write_text("ignored")
    before = git(top, "status", "--porcelain"), git(top, "diff", "--cached")
    source = find_source(top / "jobs")
    there = arrive(source, tmp_path / "host")
    here = files_in(top)
    del here["noise.log"]
    assert files_in(there) == here
    assert git(there, "rev-parse", "HEAD") == source.commit == git(top, "rev-parse", "HEAD")
    assert before == (git(top, "status", "--porcelain"), git(top, "diff", "--cached"))
    assert set(source.changed) == {"my_model.py", "weights.bin", "jobs/new 文.py", "gone.py", "jobs/a.yaml"}
    assert said[-1].startswith("not committed, goes along as a patch: ")


def test_a_later_launch_replaces_what_a_former_one_left(top: Path, tmp_path: Path) -> None:
    (top / "my_model.py").write_text("x = 2\n")
    (top / "new.py").write_text("y\n")
    first = find_source(top)
    there = arrive(first, tmp_path / "host")
    (there / "noise.log").write_text("of the training")
    (top / "new.py").unlink()
    git(top, "commit", "--quiet", "--all", "-m", "Second")
    second = find_source(top)
    arrive(second, tmp_path / "host", first.commit)
    assert second.patch is None
    assert files_in(there) == files_in(top) | {"noise.log": b"of the training"}
    history = git(top, "bundle", "list-heads", str(tmp_path / "host" / BUNDLE))
    assert history.startswith(second.commit)
    assert check_out(second, tmp_path / "host") == there  # again, as after a connection that broke


def test_a_host_with_a_commit_that_is_unknown_here_gets_all(top: Path, tmp_path: Path) -> None:
    there = arrive(find_source(top), tmp_path / "host", "1" * 40)
    assert files_in(there) == files_in(top)


def test_a_shallow_clone_and_a_detached_head_arrive(top: Path, tmp_path: Path) -> None:
    for number in range(3):
        (top / "my_model.py").write_text(f"x = {number}{number}\n")
        git(top, "commit", "--quiet", "--all", "-m", f"Number {number}")
    git(tmp_path, "clone", "--quiet", "--depth=2", top.as_uri(), "shallow")
    git(tmp_path / "shallow", "checkout", "--quiet", "--detach")
    there = arrive(find_source(tmp_path / "shallow"), tmp_path / "host")
    assert git(there, "log", "--format=%s") == "Number 2\nNumber 1"


def test_an_archive_has_the_files_with_the_changes_and_no_history(top: Path, tmp_path: Path) -> None:
    git(top, "checkout", "--quiet", "--detach")
    (top / "my_model.py").write_text("x = 2\n")
    (top / "new 文.py").write_text("y\n")
    (top / "noise.log").write_text("ignored")
    find_source(top).archive(tmp_path / "source.tar.gz")
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "-xzf", tmp_path / "source.tar.gz", "-C", tmp_path / "there"], check=True)
    (top / "noise.log").unlink()
    assert files_in(tmp_path / "there") == files_in(top)
    assert not (tmp_path / "there" / ".git").exists()


def test_what_stays_here_is_said(top: Path, said: list[str]) -> None:
    (top / ".env").write_text("KEY=secret")
    git(top, "init", "--quiet", "nested")
    (top / "runs" / "a").mkdir(parents=True)
    (top / "runs" / "a" / ".yoloyard-run").touch()
    (top / "runs" / "a" / "weights.bin").touch()
    (top / "set").mkdir()
    (top / "set" / "0.jpg").touch()
    (top / "a.lock.json").touch()
    source = find_source(top, [top / "a.lock.json"], {str(top / "set" / "0.jpg")})
    assert source.changed == ()
    assert "stays here, a repository of its own: nested/" in said
    assert "stays here, may hold secrets: .env" in said


def test_submodules_and_large_files_are_said_to_stay(top: Path, tmp_path: Path, said: list[str]) -> None:
    make_repository(tmp_path / "other", has_data=False)
    git(top, "submodule", "--quiet", "add", str(tmp_path / "other"), "library")
    (top / ".gitattributes").write_text("*.bin filter=lfs\n")
    (top / "w.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "More")
    (top / "library" / "my_model.py").write_text("changed")
    there = arrive(find_source(top), tmp_path / "host")
    assert said == [
        "warning: submodules don't go along, their folders are empty on the host: library",
        "warning: 1 file of Git LFS goes along without its content: w.bin",
    ]
    assert not list((there / "library").iterdir())


def test_the_users_settings_of_git_change_nothing(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "[diff]\nnoprefix = true\nexternal = /bin/false\nmnemonicPrefix = true\n[color]\nui = always\n"
    settings += "[core]\nquotePath = true\n[status]\nshowUntrackedFiles = no\n"
    (tmp_path / "gitconfig").write_text(settings)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (top / "my_model.py").write_text("x = 3\n")
    (top / "新.py").write_text("y\n")
    assert files_in(arrive(find_source(top), tmp_path / "host")) == files_in(top)


def test_changes_are_refused_where_they_shall_not_be(top: Path) -> None:
    find_source(top, clean=True)
    (top / "my_model.py").write_text("x = 2\n")
    with pytest.raises(UsageError, match=r"--clean: these files are not as they were committed: my_model.py; commit"):
        find_source(top, clean=True)


def test_a_data_set_that_git_does_not_know_is_no_patch(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yoloyard.jobs.source.LARGE_PATCH", 1000)
    (top / "image.bmp").write_bytes(bytes(2000))
    with pytest.raises(UsageError, match=r"0.0 MB in .* neither committed nor ignored .*: image.bmp"):
        find_source(top)


def test_where_there_is_no_commit_the_remedy_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is in no git repository, and a job starts from a commit: git init"):
        find_source(tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UsageError, match=r"has no commit yet: git add \. && git commit"):
        find_source(tmp_path)


def test_it_knows_what_goes_along(top: Path) -> None:
    (top / "new.py").touch()
    (top / "noise.log").touch()
    source = find_source(top)
    known = {name: source.has(top / name) for name in ("my_model.py", "jobs", "new.py", "noise.log", "../other.py")}
    assert known == {"my_model.py": True, "jobs": True, "new.py": True, "noise.log": False, "../other.py": False}
