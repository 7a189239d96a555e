"""What a run does when it diverges: it warns, stops, or goes back, in one process and in two."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import TINY, TINY_NETWORK, Command, alerts_in, start
from yoloyard.commands.train import train
from yoloyard.common.errors import UserError
from yoloyard.common.structures import Batch
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.training import divergence, saving
from yoloyard.training.divergence import DivergedError
from yoloyard.training.engine.engine import Engine
from yoloyard.training.listeners.events import AlertRaised, StepFinished
from yoloyard.training.listeners.results import read_records
from yoloyard.training.monitor.monitor import Monitor
from yoloyard.training.state.checkpoint import read_header

NETWORKS = Path(__file__).parents[1] / "zoo" / "broken_networks.py"
SETTINGS: dict[str, Any] = {
    "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "epochs": 4, "amp": False, "tensorboard": False, "device": "cpu",
    "nbs": 4, "mosaic": 0.0, "lr0": 0.01, "optimizer": "SGD", "name": "run",
}  # fmt: skip


def bad_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In these calls of the run, from 0, losses and gradients are not finite."""
    original: Callable[..., Any] = Engine.backward
    calls = iter(range(10**6))

    def backward(engine: Engine, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses, asked = original(engine, batch)
        if next(calls) in steps:
            return losses * float("nan"), asked
        return losses, asked

    monkeypatch.setattr(Engine, "backward", backward)


def steps_of(events: list[object]) -> list[int]:
    """The numbers of the batches of the run, as they were trained on."""
    return [event.number for event in events if isinstance(event, StepFinished)]


def alerts_of(events: list[object], kind: str) -> list[AlertRaised]:
    """The alerts of this kind."""
    return [event for event in events if isinstance(event, AlertRaised) and event.kind == kind]


def progress_of(folder: str = "runs/run") -> Any:
    """How far the last checkpoint is."""
    return read_header(Path(folder, "checkpoints", "last")).progress


def test_a_run_goes_back_to_its_last_checkpoint_with_half_the_learning_rate(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    bad_at({5, 6, 7}, monkeypatch)  # the second epoch begins with 4
    result = train({**SETTINGS, "data": str(data)}, on_event=events.append)
    steps = steps_of(events)
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, *range(4, 16)]
    (alert,) = alerts_of(events, "rolled-back")
    assert "3 steps in a row" in alert.message
    assert "went back to epoch 2, after 0 images of it" in alert.message
    assert "halved to 0.005 (time 1 of 3)" in alert.message
    records = read_records(result.folder)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert (result.folder / "results.csv").read_text().count("\n") == 5
    whole = train({**SETTINGS, "data": str(data), "name": "whole"})
    rates = [record["lr/weight"] for record in read_records(whole.folder)]
    assert [record["lr/weight"] for record in records] == [rates[0], *(rate / 2 for rate in rates[1:])]
    assert progress_of().rollbacks == 1
    (first, second) = alerts_in(result.folder)
    assert (first["alert"], second["alert"]) == ("not-finite", "rolled-back")
    assert (first["epoch"], first["step"], second["step"]) == (2, 6, 8)  # from 1
    assert set(first) == {"epoch", "step", "alert", "message", "evidence", "remedy"}


def test_a_checkpoint_between_bad_steps_is_good(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_at({2, 3, 4}, monkeypatch)
    events: list[object] = []
    train({**SETTINGS, "data": str(data), "epochs": 2}, on_event=events.append)
    assert steps_of(events) == [0, 1, 2, 3, 4, *range(4, 8)]


def rising_since(times: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In these steps of the run, from 0, the monitor says that the loss rises since the batch that is given."""
    original, calls = Monitor.look_at_step, iter(range(100))

    def rises(monitor: Monitor, *words: Any) -> AlertRaised | None:
        original(monitor, *words)
        since = times.get(next(calls))
        if since is None:
            return None
        monitor.history.rising_since = since
        return AlertRaised("training diverges", "diverged", "loss 9, it was 1")

    monkeypatch.setattr(Monitor, "look_at_step", rises)


def test_a_checkpoint_of_a_loss_that_was_rising_is_not_gone_back_to(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising_since({10: 7}, monkeypatch)  # the second epoch is saved after its batch 7
    events: list[object] = []
    train({**SETTINGS, "data": str(data)}, on_event=events.append)
    assert steps_of(events) == [*range(11), *range(4, 16)]
    (alert,) = alerts_of(events, "rolled-back")
    assert "training diverges (loss 9, it was 1), in epoch 3" in alert.message
    assert alert.evidence == "no image stands out"


def test_a_loss_that_was_rising_in_all_checkpoints_goes_back_to_the_oldest(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising_since({14: 2}, monkeypatch)  # short epochs: it began to rise before the checkpoints of batches 8 and 12
    events: list[object] = []
    train({**SETTINGS, "data": str(data)}, on_event=events.append)
    assert steps_of(events) == [*range(15), *range(8, 16)]


def test_a_checkpoint_that_a_run_has_gone_back_from_is_never_gone_back_to(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = saving.write, iter(range(100))

    def full_after_two(*words: Any) -> None:
        if next(calls) >= 2:
            raise UserError("cannot write it: No space left on device")
        original(*words)

    monkeypatch.setattr(saving, "write", full_after_two)
    rising_since({10: 7, 19: 9}, monkeypatch)  # the second time after the batch of the bad checkpoint, 8
    events: list[object] = []
    with pytest.raises(UserError, match="No space left"):
        train({**SETTINGS, "data": str(data)}, on_event=events.append)
    assert steps_of(events) == [*range(11), *range(4, 13), *range(4, 16)]


def test_a_run_that_diverges_before_its_first_checkpoint_begins_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_at({1, 2, 3}, monkeypatch)
    events: list[object] = []
    train({**SETTINGS, "data": str(data), "epochs": 2}, on_event=events.append)
    assert steps_of(events) == [0, 1, 2, 3, *range(8)]
    again = read_records(Path("runs/run"))
    train({**SETTINGS, "data": str(data), "epochs": 2, "lr0": 0.005, "warmup_bias_lr": 0.05, "name": "other"})
    other = read_records(Path("runs/other"))
    for name in ("train/box", "train/cls", "gradient/norm", "lr/bias", "val/map50"):
        assert [record[name] for record in again] == [record[name] for record in other]


def test_the_fourth_divergence_ends_the_run_with_the_good_weights_saved(
    data: Path, monkeypatch: pytest.MonkeyPatch, yoloyard: Command
) -> None:
    with monkeypatch.context() as patch:
        bad_at(set(range(5, 1000)), patch)
        with pytest.raises(DivergedError, match=r"for the 4th time.*all is saved in runs/run"):
            train({**SETTINGS, "data": str(data)})
    progress = progress_of()
    assert (progress.epoch, progress.position, progress.rollbacks) == (1, 0, 3)
    code, _, err = yoloyard("train", "--resume", "runs/run")
    assert (code, err) == (0, "")
    rates = [record["lr/weight"] for record in read_records(Path("runs/run"))]
    assert rates[1] < rates[0] / 4


def test_a_divergence_is_said_where_nothing_can_be_saved(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UserError("cannot write it: No space left on device")

    bad_at({5, 6, 7}, monkeypatch)
    monkeypatch.setattr(saving, "write", full)
    with pytest.raises(DivergedError, match=r"3 steps in a row .* this moment is not saved: .*No space left"):
        train({**SETTINGS, "data": str(data), "on_divergence": "stop"})


def test_a_run_that_could_not_save_yet_begins_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = saving.write, iter(range(100))

    def full_at_first(*words: Any) -> None:
        if next(calls) == 0:
            raise UserError("cannot write it: No space left on device")
        original(*words)

    bad_at({5, 6, 7}, monkeypatch)  # after the first epoch, whose save has failed
    monkeypatch.setattr(saving, "write", full_at_first)
    events: list[object] = []
    train({**SETTINGS, "data": str(data), "epochs": 2}, on_event=events.append)
    assert steps_of(events) == [*range(8), *range(8)]


def test_a_run_that_shall_only_warn_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_at({5, 6, 7, 8}, monkeypatch)
    events: list[object] = []
    train({**SETTINGS, "data": str(data), "on_divergence": "warn"}, on_event=events.append)
    assert steps_of(events) == list(range(16))
    assert len(alerts_of(events, "not-finite")) == 1


def test_an_answer_that_is_unknown_is_refused(data: Path, yoloyard: Command) -> None:
    code, _, err = yoloyard("train", "--data", data, *TINY, "--on-divergence", "panic")
    assert code == 2
    assert "on-divergence" in err


@pytest.fixture
def black(data: Path) -> Path:
    """The set with two black images, which the network of a user can't stand."""
    for number in (3, 8):
        image = np.zeros((96, 96, 3), np.uint8)
        (data.parent / "images" / "train" / f"{number:04d}.jpg").write_bytes(encode_jpeg(image, 90))
    return data


def test_images_that_make_the_gradient_nan_are_found_left_out_and_stay_so_after_a_resume(
    black: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "MAX_BAD_STEPS", 1)
    events: list[object] = []
    settings = {**SETTINGS, "data": str(black), "model": f"{NETWORKS}:BlackImage", "seed": 1}

    def stop(event: object) -> None:
        if len(alerts_of(events, "rolled-back")) == 2 and isinstance(event, StepFinished):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(UserError, match="stopped; everything is saved"):
        train(settings, on_event=[events.append, stop])
    told = [alert.evidence for alert in alerts_of(events, "rolled-back")]
    assert sorted(evidence.split("/")[-1] for evidence in told) == ["0003.jpg", "0008.jpg"]
    assert progress_of().left_out == [3, 8]
    seen: list[object] = []
    train({}, resume="runs/run", on_event=seen.append)
    assert not alerts_of(seen, "rolled-back")
    assert not alerts_of(seen, "not-finite")
    assert progress_of().left_out == [3, 8]


def test_images_offend_by_what_their_own_samples_do() -> None:
    nan = math.nan
    assert divergence.offending([((1,), 1.0), ((2,), nan), ((3,), 500.0)]) == [2]  # the large one is finite
    assert divergence.offending([((1,), 1.0), ((2,), 1.1), ((3,), 500.0)]) == [3]
    assert divergence.offending([((1, 2, 3, 4), nan), ((1, 2, 5, 6), 1.0), ((3, 5), 1.0)]) == [4]  # of a mosaic
    assert divergence.offending([((1,), nan), ((2,), math.inf)]) == [1, 2]
    assert divergence.offending([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "pipeline"])
def test_two_processes_go_back_together(data: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NETWORKS.parents[1]))
    words = [*TINY[2:], "--model", f"{NETWORKS}:ExplodingSoon", "--nbs", "4", "--name", "run", "--processes", "2"]
    words += ["--strategy", strategy]
    process = start("train", "--data", data, *words, "--epochs", 4)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "for the 4th time" in err
    assert [alert["alert"] for alert in alerts_in(Path("runs/run"))].count("rolled-back") == 3
    assert progress_of().rollbacks == 3
