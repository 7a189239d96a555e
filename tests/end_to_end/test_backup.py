"""`--backup`: what a run copies to an object store, and a run that goes on from there."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch

from commands import TINY, TINY_NETWORK, Command, start
from object_store import BUCKET, CREDENTIALS, Proxy, Request, no_fault, paths_below
from yoloyard.commands import train as run
from yoloyard.common.errors import UserError
from yoloyard.models import registry
from yoloyard.models.weights import read_weights, save_weights
from yoloyard.storage.address import open_store
from yoloyard.storage.copies import Copies
from yoloyard.storage.fetch import fetch_run
from yoloyard.training.engine.engine import Figures
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners import backup, events
from yoloyard.training.listeners.events import Event
from yoloyard.training.monitor.monitor import Monitor
from yoloyard.training.state.checkpoint import read_header

ADDRESS = f"s3://{BUCKET}/line"
WORDS = {
    "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "nbs": 8, "amp": False, "tensorboard": False, "device": "cpu",
    "epochs": 3, "workers": 0, "lr0": 0.002, "optimizer": "AdamW", "save_period": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread tries soon again."""
    monkeypatch.setattr(backup, "LONGEST_PAUSE", 0.2)


def train(data: Path, on_event: Callable[[Event], object] | None = None, **words: Any) -> None:
    run.train({**WORDS, "data": str(data), "name": "line", "backup": ADDRESS, **words}, on_event=on_event)


def stop_after(epoch: int, number: int = signal.SIGTERM) -> Callable[[Event], None]:
    """A signal when the second batch after this epoch has been trained on."""

    def listener(event: Event) -> None:
        if isinstance(event, events.StepFinished) and (event.epoch, event.batch) == (epoch + 1, 2):
            os.kill(os.getpid(), number)

    return listener


def losses_of(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chosen = ("epoch", "train", "val", "lr", "gradient")
    return [{name: value for name, value in record.items() if name.split("/")[0] in chosen} for record in records]


def copied() -> list[tuple[int, int]]:
    return [(each.epoch, each.position) for each in Copies(ADDRESS).read_manifests()]


@pytest.mark.slow
def test_a_run_goes_on_on_a_bare_machine_with_the_same_losses(data: Path, proxy: Proxy, yoloyard: Command) -> None:
    train(data, backup=None, name="whole")
    with pytest.raises(Interrupted) as stopped:
        train(data, stop_after(1))
    assert stopped.value.exit_code == 143
    assert copied()[-1] == (1, 8)
    shutil.rmtree("runs/line")
    shutil.rmtree(os.environ["YOLOYARD_CACHE"])
    data.parent.rename("moved")
    code, out, err = yoloyard("train", "--resume", ADDRESS, "--data", "moved/data.yaml")
    assert (code, err) == (0, "")
    assert f"fetched 0.8 MB from {ADDRESS} into runs/line" in re.sub(r"\d+\.\d MB", "0.8 MB", out)
    assert losses_of(Path("runs/line")) == losses_of(Path("runs/whole"))
    for name in ("best", "last"):
        one, other = (read_weights(Path(f"runs/{each}/weights/{name}.safetensors"))[0] for each in ("whole", "line"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert copied()[-1] == (3, 0)  # and its copies go on there


def test_while_the_loss_rises_the_last_good_checkpoint_is_copied_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Monitor.look_at_step

    def rises(monitor: Monitor, figures: Figures, *words: Any) -> None:
        original(monitor, figures, *words)
        if figures.number >= 5:
            monitor.history.rising_since = 5

    monkeypatch.setattr(Monitor, "look_at_step", rises)
    address = f"file://{tmp_path}/copies"
    with pytest.raises(Interrupted):
        train(data, stop_after(2), backup=address)  # with checkpoints of batches 4, 8 and 10
    folder = fetch_run(address, None, Path("elsewhere"))
    numbers = [read_header(folder / "checkpoints" / name).facts["engine"]["number"] for name in ("last", "previous")]
    assert numbers == [10, 4]


def test_other_data_are_refused(data: Path, proxy: Proxy, yoloyard: Command) -> None:
    with pytest.raises(Interrupted):
        train(data, stop_after(1))
    shutil.rmtree("runs")
    label = next((data.parent / "labels/train").glob("*.txt"))
    label.write_text(label.read_text() + "0 0.5 0.5 0.25 0.25\n")
    code, _, err = yoloyard("train", "--resume", ADDRESS)
    assert code == 1
    assert "the train split" in err
    assert "is not the one that the run began with" in err


@pytest.mark.slow
def test_training_does_not_wait_and_the_newest_checkpoint_comes_next(data: Path, proxy: Proxy) -> None:
    goes_on, seen = threading.Event(), list[str]()

    def hang(request: Request) -> None:
        if "/parts/" in request.path:
            goes_on.wait()

    def listener(event: Event) -> None:
        if isinstance(event, events.RunFinished):
            seen.append(json.loads(Path("runs/line/backup.json").read_text())["epoch"])
            goes_on.set()

    proxy.fault = hang
    train(data, listener, epochs=4)
    assert seen == [None]  # nothing had arrived, and all four epochs were trained
    assert copied() in ([(1, 0), (4, 0)], [(4, 0)])
    assert not Path("runs/line/.backup").exists()


@pytest.mark.slow
def test_a_server_that_is_down_for_a_while_costs_nothing(data: Path, proxy: Proxy, said: list[str]) -> None:
    def listener(event: Event) -> None:
        if isinstance(event, events.EpochEnded) and event.epoch == 1:
            proxy.stop()
        if isinstance(event, events.RunFinished):
            proxy.start()

    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yoloyard.training.listeners.console.Console.say", lambda self, line: lines.append(line))
        train(data, listener)
    assert copied()[-1] == (3, 0)
    text = "\n".join(lines)
    assert text.count("training goes on, and it is tried again") == 1
    assert f"copies arrive again in {ADDRESS}" in text
    assert f"the last checkpoint, weights and records are in {ADDRESS}; go on from anywhere with" in text


@pytest.mark.slow
def test_a_copy_that_never_arrives_ends_the_finished_run_with_1(
    data: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STALLED_SECONDS", 2)

    def listener(event: Event) -> None:
        if isinstance(event, events.EpochMeasured):
            proxy.fault = lambda request: (503, "SlowDown") if "/checkpoints/0" in request.path else None  # manifests

    extend = r"is sent when the run is extended \(--resume, --epochs\)"
    with pytest.raises(UserError, match=f"the last checkpoint did not arrive .*{extend}") as late:
        train(data, listener, epochs=1)
    assert late.value.exit_code == 1
    assert "the store answers 503 Service Unavailable" in str(late.value)
    assert Path("runs/line/report.html").exists()
    note = json.loads(Path("runs/line/backup.json").read_text())
    assert note["address"] == ADDRESS
    assert "503" in note["error"]
    proxy.fault = no_fault
    monkeypatch.setattr(backup, "STALLED_SECONDS", 60)
    run.train({"epochs": 2}, resume="runs/line")
    assert copied()[-1] == (2, 0)


def test_a_checkpoint_that_could_not_be_kept_for_sending_is_missed_at_the_end(
    data: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup, "link_or_copy", full)
    with pytest.raises(UserError, match=r"the last checkpoint did not arrive .*; of those before, none did"):
        train(data, epochs=1)


def test_grace_seconds_bound_the_wait_after_sigterm(
    data: Path, proxy: Proxy, capfd: pytest.CaptureFixture[str]
) -> None:
    goes_on = threading.Event()

    def hang(request: Request) -> None:
        if "/parts/" in request.path:
            goes_on.wait()

    proxy.fault = hang
    with pytest.raises(Interrupted) as stopped:
        train(data, stop_after(1), grace_seconds=0.3)
    goes_on.set()
    assert stopped.value.exit_code == 143
    assert "the last checkpoint did not arrive" in capfd.readouterr().out
    assert Path("runs/line/checkpoints/last/manifest.json").exists()


@pytest.mark.parametrize(
    ("address", "fault", "said"),
    [
        (
            ADDRESS,
            (403, "InvalidAccessKeyId"),
            "the store refuses these credentials (InvalidAccessKeyId)",
        ),
        ("s3://nowhere/line", None, "there is no such bucket"),
        ("file:///nowhere/at/all", None, "there is no folder /nowhere/at"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_before_the_first_epoch(
    data: Path, proxy: Proxy, yoloyard: Command, address: str, fault: Any, said: str
) -> None:
    proxy.fault = lambda request: fault
    code, out, err = yoloyard("train", "--data", data, "--epochs", 1, *TINY, "--backup", address)
    assert code == 1
    assert said in err
    assert "epoch 1/" not in out
    assert not Path("runs/line/checkpoints").exists()


def test_a_second_run_may_not_write_there_and_no_credential_is_anywhere(
    data: Path, proxy: Proxy, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-tests")
    words = ("train", "--data", data, "--epochs", 1, *TINY, "--backup", ADDRESS)
    code, out, err = yoloyard(*words)
    assert (code, err) == (0, "")
    assert re.search(r"^epoch 1/1 .* (no backup yet|backup \d+ s behind)$", out, re.MULTILINE)
    code, other, err = yoloyard(*words)
    assert code == 1
    assert f"go on with that one: yoloyard train --resume {ADDRESS}" in err
    copies = Copies(ADDRESS)
    objects = {path: copies.read(path) or b"" for path in paths_below(ADDRESS)}
    files = {str(path): path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert {"report.html", "config.yaml", "metrics.jsonl", "weights/best.safetensors"} <= objects.keys()
    assert "runs/line/environment.json" in files
    for secret in (CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"], "token-of-the-tests"):
        assert secret not in out + other + err
        assert not [name for name, content in (objects | files).items() if secret.encode() in content]


def test_a_new_run_in_the_folder_of_another_is_another_run(data: Path, proxy: Proxy) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, events.EpochStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, stop, epochs=1)
    train(data, epochs=1, exist_ok=True)  # nothing of the former one had arrived
    with pytest.raises(UserError, match="holds the copies of another run, line on"):
        train(data, epochs=1, exist_ok=True)


@pytest.mark.slow
def test_a_run_of_two_processes_is_copied_and_goes_on_elsewhere(data: Path, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/copies"
    words = ["train", "--data", data, *TINY, "--processes", 2, "--backup", address]
    process = start(*words, "--epochs", 2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    shutil.rmtree("runs")
    process = start("train", "--resume", address, "--epochs", 3)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count(f"from {address} into runs/line") == 1
    assert [record["epoch"] for record in losses_of(Path("runs/line"))] == [1, 2, 3]
    assert Copies(address).read_manifests()[-1].epoch == 3


@pytest.mark.slow
def test_a_server_that_is_down_for_a_minute_costs_nothing(data: Path, proxy: Proxy) -> None:
    def listener(event: Event) -> None:
        if isinstance(event, events.EpochEnded) and event.epoch == 1:
            proxy.stop()
            threading.Timer(60, proxy.start).start()

    train(data, listener)
    assert copied()[-1] == (3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("request_number", [1, 8])
def test_a_run_that_is_killed_during_an_upload_goes_on_elsewhere(data: Path, proxy: Proxy, request_number: int) -> None:
    """Its copy is cut off at this request after the first whole one."""
    train(data, backup=None, name="whole")
    numbers, is_whole, reached = itertools.count(1), threading.Event(), threading.Event()

    def fault(request: Request) -> str | None:
        if is_whole.is_set() and next(numbers) >= request_number:
            reached.set()
            return "cut"
        if request.method == "PUT" and request.path.endswith("/checkpoints/00000001.json"):
            is_whole.set()
        return None

    proxy.fault = fault
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in WORDS.items() if name != "amp"]
    process = start("train", "--data", data, "--no-amp", *flags, "--backup", ADDRESS)
    assert reached.wait(120)
    process.kill()
    process.communicate()
    proxy.fault = no_fault
    assert copied()
    shutil.rmtree("runs/line")
    run.train({}, resume=ADDRESS)
    assert losses_of(Path("runs/line")) == losses_of(Path("runs/whole"))


def test_a_checkpoint_that_changed_on_the_disk_is_not_copied(data: Path, proxy: Proxy) -> None:
    damaged: list[Path] = []

    def listener(event: Event) -> None:
        if isinstance(event, events.CheckpointWritten) and not damaged:
            path = event.folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"x")
            damaged.append(path)

    train(data, listener, epochs=2)
    assert damaged
    assert copied() == [(2, 0)]


@pytest.mark.slow
def test_val_predict_and_info_take_the_address_of_a_run(data: Path, proxy: Proxy, yoloyard: Command) -> None:
    metadata = {"model": "yolo11n", "model_arguments": {"num_classes": 5}, "imgsz": 64}
    save_weights(Path("best.safetensors"), registry.build("yolo11n", 5).state_dict(), metadata)
    obstore.put(open_store(ADDRESS), "weights/best.safetensors", Path("best.safetensors"))
    image = next((data.parent / "images/val").iterdir())
    for words in (("val", "--data", data, "--weights"), ("predict", image, "--weights"), ("info",)):
        (code, there, err), (_, here, _) = (
            yoloyard(*words, weights, "--json") for weights in (ADDRESS, "best.safetensors")
        )
        assert code == 0, err
        assert comparable(there) == comparable(here)


def comparable(document: str) -> str:
    """Without the names of the weights and of the folder of results."""
    return re.sub(r'"[^"]*(best\.safetensors|s3://runs/line|runs/(val|predict))[^"]*"', "", document)


def test_a_run_begins_with_weights_from_an_address(data: Path, run_folder: Path, yoloyard: Command) -> None:
    address = f"file://{run_folder.absolute()}"  # of a run: its best weights
    words = ("train", "--data", data, "--epochs", 1, *TINY, "--weights", address, "--name", "second")
    code, out, err = yoloyard(*words)
    assert (code, err) == (0, "")
    assert re.search(r"weights from .*: took (\d+) of \1 tensors", out)
    assert f"weights: {address}" in Path("runs/second/config.yaml").read_text()
