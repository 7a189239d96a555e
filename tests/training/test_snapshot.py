"""A snapshot is of one moment, whatever training does while another thread writes it."""

import errno
import threading
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from on_device import Training, everything, some_batch
from yoloyard.common.errors import UserError
from yoloyard.training.state.checkpoint import Progress, gone_back, read_header, restore, snapshot_of, write
from yoloyard.training.state.randomness import RandomNumbers

CPU = torch.device("cpu")


def test_a_snapshot_that_is_written_while_training_goes_on_brings_its_own_moment_back(tmp_path: Path) -> None:
    engine, progress = Training(CPU, accumulate=2).engine, Progress(epoch=3, best=0.5)
    for seed in range(3):
        engine.step(some_batch(seed=seed))
    assert not engine.settle()
    expected, drawn = everything(engine), torch.get_rng_state()
    content = snapshot_of({"names": ["a"]}, engine, progress, [RandomNumbers(CPU).state_dict()])
    progress.epoch = 4
    torch.rand(1)
    writing = threading.Thread(target=write, args=(content, tmp_path / "last"))
    writing.start()
    reports = [engine.step(some_batch(seed=seed)) for seed in range(3, 6)]
    writing.join()

    header = read_header(tmp_path / "last")
    assert (header.facts["spec"], header.progress) == ({"names": ["a"]}, Progress(epoch=3, best=0.5))
    other = Training(CPU, accumulate=2).engine
    restore(header, other, progress)
    assert progress.epoch == 3
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in everything(other).items():
        assert torch.equal(value, expected[name]), name
    for seed, report in zip(range(3, 6), reports, strict=True):  # an update whose first batch came before
        assert torch.equal(other.step(some_batch(seed=seed)).losses, report.losses)
    expected = everything(engine)
    assert all(torch.equal(value, expected[name]) for name, value in everything(other).items())


def test_a_full_disk_is_said_and_the_former_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Training(CPU).engine
    content = snapshot_of({}, engine, Progress(epoch=1), [RandomNumbers(CPU).state_dict()])
    write(content, tmp_path / "last")

    def full(tensors: object, path: Path) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*last: No space left on device") as raised:
        write(content, tmp_path / "last")
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert read_header(tmp_path / "last").progress.epoch == 1


def test_a_run_that_diverges_keeps_what_it_can_go_back_to(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "last"
    engine, progress = Training(CPU).engine, Progress()

    def save_at(number: int, good_until: int) -> None:
        engine.number = number
        write(snapshot_of({}, engine, progress, []), folder, good_until)

    def found_before(number: int, or_oldest: bool = False) -> str | None:
        header = gone_back(tmp_path, number, or_oldest)
        return f"{header.folder.name} {header.facts['engine']['number']}" if header else None

    save_at(10, 10)
    save_at(20, 20)
    save_at(30, 15)  # the loss rises since 15, as is known by now
    save_at(40, 15)
    assert found_before(45) == "last 40"
    assert found_before(9) is None
    assert found_before(9, or_oldest=True) == "previous 10"
    assert found_before(100) == "previous 10"  # what came later is no longer of this run
    save_at(10, 10)
    assert found_before(100) == "last 10"
    assert read_header(folder.with_name("previous")).facts["engine"]["number"] == 10
