"""A run that was stopped goes on as if nothing had happened."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands import TINY, TINY_NETWORK, Command, start
from yoloyard.commands import train as run
from yoloyard.common.errors import UserError
from yoloyard.common.structures import Batch
from yoloyard.models.weights import read_weights
from yoloyard.training.engine.engine import Engine
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners.events import Result

WORDS = {
    "model": TINY_NETWORK, "imgsz": 96, "batch": 4, "nbs": 8, "amp": False, "tensorboard": False, "device": "cpu",
    "epochs": 4, "close_mosaic": 2, "workers": 0, "warmup_epochs": 1.0, "lr0": 0.002, "optimizer": "AdamW",
}  # fmt: skip


def train(data: Path, **words: Any) -> Result:
    return run.train({**WORDS, "data": str(data), **words})


def interrupt_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C comes while step `number` is computed."""
    original: Callable[..., Any] = Engine.backward
    steps = 0

    def backward(engine: Engine, batch: Batch) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(engine, batch)

    monkeypatch.setattr(Engine, "backward", backward)


def losses_of(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in record.items() if k.split("/")[0] in ("epoch", "train", "val", "lr", "gradient")}
        for record in records
    ]


@pytest.fixture(scope="module")
def whole(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLOYARD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
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
        one, _ = read_weights(whole / "weights" / f"{name}.safetensors")
        other, _ = read_weights(Path(f"runs/parts/weights/{name}.safetensors"))
        assert all(torch.equal(one[key], other[key]) for key in one)


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
        train(data, name="bad", nbs=4)
    assert "images/train/" in capsys.readouterr().out
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
