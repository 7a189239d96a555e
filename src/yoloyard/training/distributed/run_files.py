"""Files of a run's folder in all processes: hosts that share no disk with rank 0 get them from there."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from yoloyard.common.digests import file_sha256
from yoloyard.training.distributed.collectives import Team


@contextmanager
def files_here(team: Team, folder: Path, names: Sequence[str] | None = None) -> Iterator[Path]:
    """A folder with the files `names` of rank 0's `folder`, or all of them, for as long as the context lasts.

    It is `folder` itself where these files are the same in this process. Elsewhere it is a temporary one, which rank 0
    fills. All processes enter it together. Raises OSError if rank 0 can't read a file.
    """
    if team.size == 1:
        yield folder
        return
    listed = list(names or (path.name for path in folder.iterdir() if path.is_file())) if team.is_rank_0 else []
    digests = team.broadcast({name: _digest(folder / name) for name in listed})
    is_here = all(_digest(folder / name) == digest for name, digest in digests.items())
    if team.min(is_here):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as temporary:
        for name in digests:
            content = team.broadcast((folder / name).read_bytes() if team.is_rank_0 else None)
            if not is_here:
                path = Path(temporary, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        yield folder if is_here else Path(temporary)


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty if it can't be read."""
    try:
        return file_sha256(path)
    except OSError:
        return ""
