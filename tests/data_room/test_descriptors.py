"""Workers where few files may be open, and in a daemonic process."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import TINY, start
from yoloyard.common.errors import UserError
from yoloyard.common.files import raise_file_limit
from yoloyard.data.loading.limits import check_limit, free_descriptors, possible_workers, shortage, wanted_descriptors


@pytest.fixture
def limit() -> Iterator[None]:
    """What the test says of the limit holds for itself alone."""
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, former)


def allow(free: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + free, hard))


@pytest.mark.usefixtures("limit")
def test_what_is_free_decides_how_many_workers_there_are() -> None:
    allow(wanted_descriptors(3))
    assert free_descriptors() == wanted_descriptors(3)
    assert possible_workers(3) == (3, None)
    assert possible_workers(4) == (
        3,
        f"{free_descriptors()} more files may be open (ulimit -n), too few for 4 workers: 3 are used",
    )
    allow(5)
    assert possible_workers(8)[0] == 0
    assert possible_workers(0) == (0, None)


@pytest.mark.usefixtures("limit")
def test_batches_go_through_pipes_where_descriptors_are_few() -> None:
    allow(wanted_descriptors(2, 6))
    assert shortage(1, 2) is None
    allow(wanted_descriptors(2, 6) - 1)
    assert "too few for batches of 2 workers in shared memory" in str(shortage(1, 2))


@pytest.mark.usefixtures("limit")
def test_a_limit_that_no_training_fits_into_is_said() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    check_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (63, hard))
    with pytest.raises(UserError, match=r"may open 63 files only \(ulimit -n\), and at least 64.*ulimit -n 1024"):
        check_limit()
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def say_workers(queue: "multiprocessing.Queue[object]") -> None:
    queue.put(possible_workers(2))


def test_a_daemonic_process_loads_by_itself() -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[object] = context.Queue()
    process = context.Process(target=say_workers, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=20) == (
        0,
        "2 workers can't be started from a daemonic process: images are loaded in this one",
    )
    process.join()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("limit", [48, 16])
def test_training_ends_with_a_line_where_few_files_may_be_open(limit: int, tmp_path: Path) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    process = start("train", *TINY, "--data", "no.yaml", "--workers", 2, cwd=tmp_path, preexec_fn=lower)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ulimit -n" in err.splitlines()[-1]
