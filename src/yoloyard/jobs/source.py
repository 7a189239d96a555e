"""The user's repository on its way to a host: a commit as a git bundle, and what is not committed as a patch."""

import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from yoloyard.common.errors import UsageError, UserError, last_line
from yoloyard.common.files import RUN_MARK
from yoloyard.common.log import bytes_text

log = logging.getLogger(__name__)

BUNDLE, PATCH = "source.bundle", "source.patch"  # their names in a job's folder on a host
LARGE_PATCH = 100 * 10**6  # bytes of files that git doesn't know; more is a data set or a mistake
SHOWN_NAMES = 10
SECRET_FILES = (".env", ".netrc")  # how names of files begin that hold passwords by custom
# In a job's folder: source/ becomes the commit with the patch. What somebody has changed there by hand is kept (`git
# stash list`), files that git doesn't know stay. $1 is the commit; source.shallow (the boundary of a shallow clone),
# source.bundle and source.patch may be missing.
CHECKOUT = f"""set -e
[ -d source/.git ] || git init -q source
[ ! -s source.shallow ] || cp source.shallow source/.git/shallow
cd source
git cat-file -e "$1^{{commit}}" 2>/dev/null || git fetch -q ../{BUNDLE} HEAD
if git rev-parse -q --verify HEAD > /dev/null; then
    if [ ! -s .git/shallow ] && ! git merge-base HEAD "$1" > /dev/null; then
        echo "$PWD is of another repository: give this job a name of its own" >&2
        exit 1
    fi
    git diff --quiet || git -c user.name=yoloyard -c user.email=yoloyard stash push -q
    git reset -q --hard
fi
git checkout -q --detach "$1"
[ ! -s ../{PATCH} ] || git apply --index --whitespace=nowarn ../{PATCH}
"""


@dataclass(frozen=True)
class Source:
    """What of a repository goes along."""

    top: Path  # of the working tree
    commit: str
    patch: bytes | None  # for `git apply`
    changed: tuple[str, ...]  # what the patch changes, relative to `top`
    shallow: bytes | None  # .git/shallow of a shallow clone, which the host's repository must have, too
    left_out: tuple[str, ...] = ()  # locks of jobs, which are no part of the patch

    @property
    def patch_digest(self) -> str | None:
        """The SHA-256 of the patch."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None

    def has(self, path: Path) -> bool:
        """Does this file or folder go along? Anything that git tracks or that the patch brings does."""
        name = _inside(path, self.top)
        if name is None:
            return False
        known = git(self.top, "ls-files", "-z", "--", f":(literal){name}") if name != "." else b"."
        return bool(known) or any(each == name or each.startswith(f"{name}/") for each in self.changed)

    def is_as(self, commit: str) -> bool:
        """Has this commit the files of another one, apart from what is left out? False where that isn't known here."""
        compared = _run(self.top, "diff", "--quiet", commit, self.commit, "--", ":/", *_without(self.left_out))
        return compared.returncode == 0

    def bundle(self, to: Path, old: str | None = None) -> None:
        """Write the commit and its history to the file `to`, without what a host with the commit `old` has already.

        There is nothing to bundle where `old` is the commit itself. Raises UserError.
        """
        known = old and _run(self.top, "cat-file", "-e", f"{old}^{{commit}}").returncode == 0
        git(self.top, "bundle", "create", "--quiet", str(to), "HEAD", *([f"^{old}"] if known else []))

    def archive(self, to: Path) -> None:
        """Write the files of the commit with the patch, without the history, to `to` (.tar.gz). Raises UserError."""
        with tempfile.TemporaryDirectory(prefix="yoloyard-") as scratch:
            files, patch = Path(scratch, "files"), Path(scratch, PATCH)
            git(self.top, "clone", "--quiet", "--depth=1", self.top.as_uri(), str(files))
            if self.patch:
                patch.write_bytes(self.patch)
                git(files, "apply", "--whitespace=nowarn", str(patch))
            with tarfile.open(to, "w:gz") as archive:
                for path in sorted(files.iterdir()):
                    if path.name != ".git":
                        archive.add(path, path.name)


def find_source(folder: Path, locks: Collection[Path] = (), data: Collection[str] = (), clean: bool = False) -> Source:
    """The commit of the repository around `folder`, and the changes that are not committed.

    The files `locks` are no part of the changes, nor are new files among `data` (real paths), results of runs, files
    that hold passwords by custom, and what git ignores. Submodules and the content of Git LFS don't go along: a line
    says so. Raises UsageError where there is no commit, or with `clean` if there are changes.
    """
    done = _run(folder, "rev-parse", "--show-toplevel")
    if done.returncode:
        said = last_line(done.stderr.decode(errors="replace"))
        if "not a git repository" not in said:
            raise UsageError(f"git can't be used in {folder}: {said}")
        remedy = "git init && git add . && git commit -m 'First commit' makes one (a .gitignore keeps images out)"
        raise UsageError(f"{folder} is in no git repository, and a job starts from a commit: {remedy}")
    top = Path(os.fsdecode(done.stdout.removesuffix(b"\n")))
    done = _run(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if done.returncode:
        raise UsageError(f"the repository {top} has no commit yet: git add . && git commit -m 'First commit'")
    _say_what_stays(top)
    left_out = tuple(name for lock in locks if (name := _inside(lock, top)))
    # A copy of the index takes new files in, so that the user's own index stays as it is.
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as scratch:
        index, own = Path(scratch, "index"), Path(top, os.fsdecode(git(top, "rev-parse", "--git-path", "index")[:-1]))
        if own.exists():
            shutil.copy2(own, index)  # with its time, by which git tells files that changed as it was written
        new = _new_files(top, {os.path.join(top, name) for name in left_out} | set(data))
        add = ["add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul"]
        git(top, "--literal-pathspecs", *add, index=index, text="\0".join(new))
        compare = ["diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=all"]
        limited = ["HEAD", "--", ":/", *_without(left_out)]
        names = git(top, *compare, "--name-only", "-z", *limited, index=index)
        binary = ["--binary", "--src-prefix=a/", "--dst-prefix=b/"]
        patch = git(top, *compare, *binary, *limited, index=index) if names else b""
    changed = tuple(os.fsdecode(name) for name in names.split(b"\0") if name)
    if changed:
        shown = ", ".join(changed[:SHOWN_NAMES]) + (
            f" and {len(changed) - SHOWN_NAMES} more" if changed[SHOWN_NAMES:] else ""
        )
        if clean:
            raise UsageError(f"--clean: these files are not as they were committed: {shown}; commit or stash them")
        log.info(f"not committed, goes along as a patch: {shown}")
    shallow = Path(top, os.fsdecode(git(top, "rev-parse", "--git-path", "shallow")[:-1]))
    content = shallow.read_bytes() if shallow.exists() else None
    return Source(top, done.stdout.decode().strip(), patch or None, changed, content, left_out)


def git(folder: Path, *argv: str, index: Path | None = None, text: str = "") -> bytes:
    """What a git command in `folder` prints; `index` stands for the user's. Raises UserError with git's last line."""
    done = _run(folder, *argv, index=index, text=text)
    if done.returncode:
        name = next(word for word in argv if not word.startswith("-"))
        raise UserError(f"git {name} failed in {folder}: {last_line(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _run(folder: Path, *argv: str, index: Path | None = None, text: str = "") -> subprocess.CompletedProcess[bytes]:
    own = {"GIT_INDEX_FILE": str(index)} if index else {}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *argv]
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **own}
    try:
        return subprocess.run(command, input=os.fsencode(text), env=environment, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UserError("git is not installed here (package git): a job starts from a commit") from error


def _without(names: Collection[str]) -> list[str]:
    return [f":(top,exclude,literal){name}" for name in names]


def _new_files(top: Path, elsewhere: Collection[str]) -> list[str]:
    """The files that git neither tracks nor ignores and that go along. Raises UsageError if they are too large."""
    listed = git(top, "ls-files", "-z", "--others", "--exclude-standard")
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    nested = [name for name in names if name.endswith("/")]
    secret = [name for name in names if os.path.basename(name).startswith(SECRET_FILES)]
    for kind, left in (("a repository of its own", nested), ("may hold secrets", secret)):
        if left:
            log.info(f"stays here, {kind}: {', '.join(left[:SHOWN_NAMES])}")
    folders = {each for name in names for each in Path(name).parents}
    results = {each for each in folders if (top / each / RUN_MARK).exists()}
    names = [name for name in names if name not in {*nested, *secret} and os.path.join(top, name) not in elsewhere]
    new = [name for name in names if results.isdisjoint(Path(name).parents)]
    sizes = {name: os.lstat(top / name).st_size for name in new}
    if sum(sizes.values()) > LARGE_PATCH:
        largest = ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:3])
        raise UsageError(
            f"{bytes_text(sum(sizes.values()))} in {top} are neither committed nor ignored (the largest of "
            f"{len(new):,} files: {largest}): commit them, name them in .gitignore, or let `data:` hold them"
        )
    return new


def _say_what_stays(top: Path) -> None:
    rows = git(top, "ls-files", "--stage", "-z").split(b"\0")
    modules = [os.fsdecode(row.partition(b"\t")[2]) for row in rows if row.startswith(b"160000 ")]
    if modules:
        log.warning(f"submodules don't go along, their folders are empty on the host: {', '.join(modules)}")
    large = git(top, "ls-files", "-z", "--", ":(top,attr:filter=lfs)").split(b"\0")[:-1]
    if large:
        names = ", ".join(map(os.fsdecode, large[:3]))
        what = "1 file of Git LFS goes" if len(large) == 1 else f"{len(large):,} files of Git LFS go"
        log.warning(f"{what} along without its content: {names}")


def _inside(path: Path, top: Path) -> str | None:
    """The path from `top`, as git writes it; None if it is outside."""
    try:
        folder = Path(os.path.realpath(path.parent)) / path.name if path.name else Path(os.path.realpath(path))
        return folder.relative_to(os.path.realpath(top)).as_posix()
    except ValueError:
        return None
