"""Files and folders that are written whole, and who may write them."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yoloyard.common import files
from yoloyard.common.errors import UserError, memory_line
from yoloyard.common.files import RunLock, restore_whole_folder, whole_folder, write_whole_folder
from yoloyard.training.state.checkpoint import copy_checkpoint

HOLDER = """
import os, sys, time
from pathlib import Path
from yoloyard.common.files import RunLock
with RunLock() as lock:
    lock.take(Path(sys.argv[1]))
    if os.fork() == 0:  # a process that loads images, which ends a little later
        time.sleep(2)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_run_folder_is_locked_until_its_process_ends_however_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with monkeypatch.context() as patch, RunLock() as lock:
        patch.setattr(files, "LOCK_SECONDS", 0)
        with pytest.raises(UserError, match=f"{tmp_path} is in use: another run writes to it") as refused:
            lock.take(tmp_path)
        assert refused.value.exit_code == 1  # a cluster tries again
    holder.kill()
    with RunLock() as lock:
        lock.take(tmp_path)
    with RunLock() as lock:
        lock.take(tmp_path)
    assert said == []
    holder.wait()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])  # as network disks say it
def test_a_disk_without_locks_is_said_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: list[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock() as lock:
        lock.take(tmp_path)
    assert len(said) == 1
    assert f"{tmp_path}: no lock can be had there" in said[0]
    monkeypatch.undo()
    with RunLock() as lock:
        lock.take(tmp_path)
    assert len(said) == 1


def test_reading_between_two_renames_changes_nothing(tmp_path: Path) -> None:
    folder, old = tmp_path / "last", tmp_path / ".last.old"
    assert whole_folder(folder) == folder
    write_whole_folder(folder, lambda new: (new / "state.json").write_text("1"))
    assert whole_folder(folder) == folder
    folder.rename(old)
    assert whole_folder(folder) == old
    assert sorted(tmp_path.iterdir()) == [old]
    restore_whole_folder(folder)
    assert whole_folder(folder) == folder
    write_whole_folder(old, lambda new: (new / "state.json").write_text("0"))  # killed after the second rename
    assert whole_folder(folder) == folder


def test_checkpoints_are_kept_by_their_number(tmp_path: Path) -> None:
    last = tmp_path / "last"
    last.mkdir()
    (last / "state.json").touch()
    for name in ("epoch-9990", "epoch-10000", "epoch-0020", "epoch-best", "epoch-20000"):
        time.sleep(0.01)  # in this order by time
        (tmp_path / name).mkdir()
    copy_checkpoint(last, tmp_path / "epoch-10010", keep=2)
    names = {path.name for path in tmp_path.iterdir()}
    # a higher number is of another run; what is no number is the user's
    assert names == {"last", "epoch-10000", "epoch-10010", "epoch-best", "epoch-20000"}


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"), "device"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "host"),
        (MemoryError("Unable to allocate 1.00 TiB for an array"), "host"),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), ""),
        (ValueError("out of memory"), ""),
    ],
)
def test_errors_of_memory_are_recognised(error: Exception, place: str) -> None:
    expected = f"the {place} has too little memory: lower --batch or --imgsz (" if place else ""
    assert memory_line(error).startswith(expected)
    assert bool(memory_line(error)) == bool(place)
    assert "\n" not in memory_line(error)
