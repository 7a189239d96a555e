"""A run that was stopped goes on as if nothing had happened."""

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands import TINY, TINY_NETWORK, Command, start
from yoloyard.commands import train as run
from yoloyard.common.errors import UserError
from yoloyard.common.files import cannot_write
from yoloyard.common.run_folder import read_run
from yoloyard.common.structures import Batch
from yoloyard.models.weights import read_weights
from yoloyard.training import saving
from yoloyard.training.engine.engine import Engine
from yoloyard.training.interrupt import Interrupted, InterruptRequest
from yoloyard.training.listeners.events import CheckpointWritten, Result
from yoloyard.training.listeners.results import read_records
from yoloyard.training.state.checkpoint import read_header

WORDS = {
    "model": TINY_NETWORK, "imgsz": 96, "batch": 4, "nbs": 8, "amp": False, "tensorboard": False, "device": "cpu",
    "epochs": 4, "close_mosaic": 2, "workers": 0, "warmup_epochs": 1.0, "lr0": 0.002, "optimizer": "AdamW",
}  # fmt: skip


def train(data: Path, **words: Any) -> Result:
    return run.train({**WORDS, "data": str(data), **words})


def interrupt_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C comes while step `number` is computed."""
    signal_at_step(monkeypatch, number, signal.SIGINT)


def signal_at_step(monkeypatch: pytest.MonkeyPatch, number: int, what: signal.Signals) -> None:
    """The signal `what` comes while step `number` is computed."""
    original: Callable[..., Any] = Engine.backward
    steps = 0

    def backward(engine: Engine, batch: Batch) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            os.kill(os.getpid(), what)
        return original(engine, batch)

    monkeypatch.setattr(Engine, "backward", backward)


def losses_of(folder: Path) -> list[dict[str, float]]:
    records = read_records(folder)
    return [
        {k: v for k, v in record.items() if k.split("/")[0] in ("epoch", "train", "val", "lr", "gradient")}
        for record in records
    ]


@contextmanager
def folder_of_its_own(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Inside, runs and the cache are in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLOYARD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield patch


@pytest.fixture(scope="module")
def whole(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing stops."""
    with folder_of_its_own(tmp_path_factory.mktemp("whole")):
        return train(tiny_set, name="whole").folder.absolute()


@pytest.mark.parametrize("step", [2, 4, 9, 13])  # within and at the end of an epoch, before and after mosaic is off
def test_losses_and_weights_are_bit_equal_to_the_uninterrupted_run(
    whole: Path, data: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, step)
        with pytest.raises(Interrupted, match="yoloyard train --resume runs/parts") as stop:
            train(data, name="parts")
    assert stop.value.exit_code == 130
    run.train({}, resume="runs/parts")
    assert losses_of(Path("runs/parts")) == losses_of(whole)
    for name in ("best", "last"):
        one, facts = read_weights(whole / "weights" / f"{name}.safetensors")
        other, others = read_weights(Path(f"runs/parts/weights/{name}.safetensors"))
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert [each["data"] for each in others["history"]] == [each["data"] for each in facts["history"]]
        assert len(others["history"]) == 1


def test_saves_within_an_epoch_change_nothing(whole: Path, data: Path) -> None:
    places: list[str] = []

    def look(event: object) -> None:
        if isinstance(event, CheckpointWritten):
            places.append(read_header(event.folder).progress.place)

    run.train({**WORDS, "data": str(data), "name": "often", "save_minutes": 1e-9}, on_event=look)
    assert len(set(places)) > 4  # after nearly every step
    assert losses_of(Path("runs/often")) == losses_of(whole)


def test_sigusr1_saves_and_training_goes_on(whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[int, int]] = []

    def look(event: object) -> None:
        if isinstance(event, CheckpointWritten):
            progress = read_header(event.folder).progress
            saved.append((progress.epoch, progress.position))

    signal_at_step(monkeypatch, 5, signal.SIGUSR1)
    run.train({**WORDS, "data": str(data), "name": "signalled"}, on_event=look)
    assert saved == [(1, 0), (1, 8), (2, 0), (3, 0), (4, 0)]  # it is heard a step later
    assert losses_of(Path("runs/signalled")) == losses_of(whole)


def test_sigusr1_does_not_end_a_run_that_is_about_to_stop() -> None:
    former = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with InterruptRequest(silent=True) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (interrupt.signal, interrupt.takes_save(0)) == (signal.SIGTERM, True)
    assert signal.signal(signal.SIGUSR1, former) == signal.SIG_IGN


@pytest.fixture(scope="module")
def stopped(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped in its last epoch, with a checkpoint of the end of the one before."""
    folder = tmp_path_factory.mktemp("stopped")
    with folder_of_its_own(folder) as patch:
        interrupt_at_step(patch, 14)
        with pytest.raises(Interrupted):
            train(tiny_set, name="parts")
    return folder / "runs" / "parts"


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_byte(file: Path, bit: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= bit
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_high_bit(file: Path) -> None:
    flip_a_byte(file, 128)


def hold_nothing(file: Path) -> None:
    file.write_text("[]")


def of_another(file: Path) -> None:
    shutil.copyfile(file.parents[1] / "previous" / file.name, file)


@pytest.mark.parametrize(
    ("do_damage", "name", "said"),
    [
        (cut, "model.safetensors", "model.safetensors has .* bytes instead of"),
        (flip_a_byte, "ema.safetensors", "ema.safetensors has another content than was written"),
        (empty, "optimizer.safetensors", "optimizer.safetensors has 0 bytes instead of"),
        (Path.unlink, "random-0.safetensors", "random-0.safetensors is missing"),
        (of_another, "manifest.json", "(has another content than was written|has .* bytes instead of)"),
        (of_another, "engine.safetensors", "engine.safetensors has another content than was written"),
        (Path.unlink, "manifest.json", "manifest.json can't be read"),
        (cut, "manifest.json", "manifest.json can't be read"),
        (cut, "state.json", "the checkpoint .*last can't be read"),
        (Path.unlink, "state.json", "the checkpoint .*last can't be read"),
        (flip_a_byte, "state.json", "(state.json has another content than was written|last can't be read)"),
        (flip_a_high_bit, "state.json", "the checkpoint .*last can't be read"),
        (hold_nothing, "state.json", "the checkpoint .*last can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    whole: Path, stopped: Path, data: Path, capsys: pytest.CaptureFixture[str],
    do_damage: Callable[[Path], object], name: str, said: str,
) -> None:  # fmt: skip
    shutil.copytree(stopped, "runs/parts")
    do_damage(Path("runs/parts/checkpoints/last") / name)
    run.train({}, resume="runs/parts")
    out = capsys.readouterr().out
    assert re.search(f"warning: .*{said}.*; going on from previous instead, of epoch 4, after 0 images of it", out)
    assert losses_of(Path("runs/parts")) == losses_of(whole)
    assert {path.name for path in Path("runs/parts/checkpoints").iterdir()} == {"last", "previous", "damaged"}


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_names_them(stopped: Path, data: Path) -> None:
    shutil.copytree(stopped, "runs/parts")
    for name in ("last", "previous"):
        cut(Path(f"runs/parts/checkpoints/{name}/model.safetensors"))
    with pytest.raises(UserError, match=r"no whole checkpoint in .*last is damaged.*previous is damaged"):
        run.train({}, resume="runs/parts")


def test_what_cannot_be_written_is_written_at_the_next_save(
    whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_at(call: int, original: Callable[..., None]) -> Callable[..., None]:
        calls = count(1)

        def work(*arguments: Any) -> None:
            if next(calls) == call:
                raise cannot_write(Path("it"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            original(*arguments)

        return work

    monkeypatch.setattr(saving, "save_run_weights", full_at(2, saving.save_run_weights))  # the best of the first epoch
    monkeypatch.setattr(saving, "write", full_at(3, saving.write))  # the checkpoint of the third
    result = train(data, name="full")
    out = capsys.readouterr().out
    assert out.count("No space left on device") == 2
    assert "Training goes on, and the next save tries it again; make room" in out
    assert losses_of(Path("runs/full")) == losses_of(whole)
    one, facts = read_weights(whole / "weights" / "best.safetensors")
    other, others = read_weights(result.weights)
    assert facts["epoch"] == others["epoch"]
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("in_its_place", [True, False])
def test_a_run_folder_that_vanishes_ends_the_run_at_its_last_save(
    in_its_place: bool, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def vanish(event: object) -> None:
        if isinstance(event, CheckpointWritten) and read_header(event.folder).progress.epoch == 2:
            Path("runs/gone").rename("runs/elsewhere")
            if in_its_place:
                Path("runs/gone").write_text("a file")

    with pytest.raises(UserError, match=r"cannot write runs/gone.*: the run folder is gone"):
        run.train({**WORDS, "data": str(data), "name": "gone"}, on_event=vanish)
    assert "Training goes on" in capsys.readouterr().out
    assert Path("runs/gone").is_file() == Path("runs/gone").exists() == in_its_place
    assert read_header(Path("runs/elsewhere/checkpoints/last")).progress.epoch >= 1


def failing_always(*arguments: Any) -> None:
    raise cannot_write(Path("it"), OSError(errno.EACCES, os.strerror(errno.EACCES)))


def test_weights_that_cannot_be_written_keep_no_checkpoint_from_disk(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "save_run_weights", failing_always)
    with pytest.raises(UserError, match="cannot write it: Permission denied"):
        train(data, name="weightless")
    assert read_header(Path("runs/weightless/checkpoints/last")).progress.epoch == 4
    assert capsys.readouterr().out.count("Training goes on") == 3  # not for the last save, which raises


def test_a_periodic_copy_that_cannot_be_made_is_a_warning(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "copy_checkpoint", failing_always)
    train(data, epochs=3, save_period=2, name="uncopied")
    assert capsys.readouterr().out.count("cannot write it: Permission denied") == 1


def test_a_new_run_in_an_old_folder_goes_on_from_its_own_checkpoints(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, name="again", save_period=1)
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 6)
        with pytest.raises(Interrupted):
            train(data, name="again", exist_ok=True, lr0=0.01)
    run.train({}, resume="runs/again")
    assert [record["epoch"] for record in losses_of(Path("runs/again"))] == [1, 2, 3, 4]
    assert read_header(Path("runs/again/checkpoints/last")).spec.config.optimization.lr0 == 0.01
    assert Path("runs/again/checkpoints-before/epoch-0004").is_dir()


def test_a_checkpoint_of_a_newer_version_is_left_alone(stopped: Path, data: Path) -> None:
    shutil.copytree(stopped, "runs/parts")
    state = Path("runs/parts/checkpoints/last/state.json")
    state.write_text(state.read_text().replace('"format": 4', '"format": 5'))
    with pytest.raises(UserError, match="has checkpoint format 5, this version reads 2 to 4: use a newer one"):
        run.train({}, resume="runs/parts")
    assert state.exists()


def test_a_finished_run_is_extended_and_says_what_the_learning_rate_does(data: Path, yoloyard: Command) -> None:
    train(data, epochs=1, name="short")
    code, out, err = yoloyard("train", "--resume", "runs/short")
    assert code == 2
    assert "is finished" in err
    code, out, err = yoloyard("train", "--resume", "--epochs", 2)
    assert (code, err) == (0, "")
    assert "epochs 1 became 2: the learning rate goes from" in out
    assert [record["epoch"] for record in losses_of(Path("runs/short"))] == [1, 2]


def test_a_run_that_was_stopped_before_its_report_gets_it(data: Path, yoloyard: Command) -> None:
    result = train(data, epochs=1, name="short")
    result.report.unlink()
    code, _, err = yoloyard("train", "--data", data, "--resume", "runs/short")
    assert (code, err) == (0, "")
    assert result.report.exists()


def test_what_would_make_it_another_run_is_refused(data: Path, yoloyard: Command) -> None:
    train(data, epochs=1, name="short")
    code, _, err = yoloyard("train", "--resume", "runs/short", "--epochs", 2, "--lr0", 0.5)
    assert code == 2
    assert "can't change lr0" in err


def test_three_bad_steps_in_a_row_stop_the_run_and_name_the_images(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original: Callable[..., Any] = Engine.backward

    def backward(engine: Engine, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses, stop = original(engine, batch)
        for parameter in engine.model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float("nan"))
        return losses * float("nan"), stop

    monkeypatch.setattr(Engine, "backward", backward)
    with pytest.raises(UserError, match="3 steps in a row"):
        train(data, name="bad", nbs=4, on_divergence="stop")
    assert "images/train/" in capsys.readouterr().out
    assert read_run(Path("runs/bad")).state == "diverged"
    facts = json.loads(Path("runs/bad/checkpoints/last/state.json").read_text())
    assert (facts["progress"]["epoch"], facts["progress"]["position"]) == (0, 16)
    weights = load_file("runs/bad/checkpoints/last/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_ctrl_c_saves_and_prints_the_command_to_go_on(data: Path) -> None:
    process = start("train", "--data", data, "--epochs", 200, *TINY)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "yoloyard train --resume runs/line" in err
    assert "Traceback" not in err
    assert json.loads(Path("runs/line/checkpoints/last/state.json").read_text())["progress"]["epoch"] >= 1


def test_a_full_disk_ends_the_run_with_one_line_and_the_old_files_whole(data: Path, yoloyard: Command) -> None:
    import resource

    train(data, epochs=1, name="full")
    weights = Path("runs/full/weights/last.safetensors")
    before = weights.read_bytes(), sorted(Path("runs/full/checkpoints/last").iterdir())

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))

    process = start("train", "--resume", "runs/full", "--epochs", 2, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "cannot write" in err
    assert "Traceback" not in err
    assert before == (weights.read_bytes(), sorted(Path("runs/full/checkpoints/last").iterdir()))
    code, _, err = yoloyard("train", "--resume", "runs/full", "--epochs", 2)
    assert (code, err) == (0, "")
