"""What a run shows elsewhere: Weights & Biases without its server, and a tracker that fails."""

import dataclasses
import importlib
import importlib.util
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.structures import Detections
from yoloyard.config.settings import TrainConfig
from yoloyard.data.pixels.decode import decode_image
from yoloyard.evaluation.report.drawing import draw_boxes
from yoloyard.training.listeners.events import AlertRaised, EpochEnded, Listeners, RunFinished, RunStarted, Validation
from yoloyard.training.listeners.trackers import (
    TensorBoard,
    Tracker,
    WeightsAndBiases,
    check_trackers,
    open_tensorboard,
    open_wandb,
    show_prediction,
)

RECORD = {"epoch": 1, "train/box": 2.5, "val/map50": 0.25}
ALERT = AlertRaised("the device waits", "starved", "80%", "raise --workers")
IMAGE = np.full((32, 48, 3), 90, np.uint8)
FOUND = Detections(torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0.9]), torch.tensor([0]))
WANDB = TrainConfig(wandb=True, tensorboard=False)


def records_in(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format, blocks of 32 KiB with pieces.

    A piece is checksum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last), content.
    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    content, position, record = path.read_bytes(), 7, b""
    while position < len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def rows_of(folder: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a run that Weights & Biases kept offline, and the names that the run has there."""
    protobuf: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    rows, ids = [], []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for content in records_in(path):
            record = protobuf.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                ids.append(f"{record.run.project}/{record.run.display_name}/{record.run.run_id}")
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    return rows, ids


def alerts_in(folder: Path) -> list[Any]:
    """The alerts of a run that Weights & Biases kept offline."""
    protobuf: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for content in records_in(path):
            record = protobuf.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "alert":
                found.append(record.alert)
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.usefixtures("offline")
def test_weights_and_biases_keeps_figures_and_images_and_a_resumed_run_is_the_same_one(tmp_path: Path) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    for epoch in (1, 2):
        sink = WeightsAndBiases(folder, WANDB)
        show_prediction(sink, 7, IMAGE, FOUND, ["dent"], epoch)
        sink.scalars(RECORD | {"epoch": epoch})
        sink.alert(ALERT, epoch)
        sink.close()
        time.sleep(1)  # the package names its folders by the second
    told = {(alert.title, alert.text, alert.level) for alert in alerts_in(folder)}
    assert told == {("starved", ALERT.line, "WARN")}
    rows, ids = rows_of(folder)
    figures = [row for row in rows if "val/map50" in row]
    assert [(row["epoch"], row["train/box"], row["val/map50"]) for row in figures] == [
        ("1", "2.5", "0.25"),
        ("2", "2.5", "0.25"),
    ]
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/prediction/7_*.png"))) == 2
    assert len(ids) == 2
    assert set(ids) == {f"yoloyard/line/{(folder / 'wandb-id.txt').read_text()}"}


@pytest.mark.usefixtures("offline")
def test_an_account_that_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**words: Any) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"No API key configured; say `wandb login`, set WANDB_MODE=offline, or"):
        Listeners([Tracker(open_wandb)]).tell(started(tmp_path, WANDB))


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        check_trackers(WANDB)
    check_trackers(TrainConfig())


def test_a_tracker_that_fails_is_left_out_with_one_alert(tmp_path: Path, said: list[str]) -> None:
    class Full:
        def scalars(self, record: dict[str, float]) -> None:
            raise OSError(28, "No space left on device")

        def image(self, name: str, image: np.ndarray, step: int) -> None:
            seen.append(name)

        def alert(self, alert: AlertRaised, epoch: int) -> None:
            pass

        def close(self) -> None:
            seen.append("closed")

    class Good(Full):
        def scalars(self, record: dict[str, float]) -> None:
            seen.append("scalars")

    def fails(event: object) -> None:
        raise ValueError("no network")

    def fails_at_alerts(event: object) -> None:
        if isinstance(event, AlertRaised):
            raise ValueError("no telephone")

    seen: list[str] = []
    events: list[object] = []
    sinks: list[Any] = [Full(), Good()]
    trackers = [Tracker(lambda *_, sink=sink: sink) for sink in sinks]
    listeners = Listeners([*trackers, fails, fails_at_alerts, events.append])
    listeners.tell(started(tmp_path, TrainConfig()))
    listeners.tell(EpochEnded(2, RECORD))
    listeners.tell(EpochEnded(3, RECORD))
    listeners.tell(RunFinished(None, 2, 1.0))
    assert said == [
        "warning: fails has failed and is left out from here on: no network",
        "warning: fails_at_alerts has failed and is left out from here on: no telephone",
        "warning: Full has failed and is left out from here on: [Errno 28] No space left on device",
    ]
    assert seen == ["scalars", "scalars", "closed"]
    kinds = [type(event).__name__ for event in events]
    assert kinds == [
        "AlertRaised",
        "AlertRaised",
        "RunStarted",
        "AlertRaised",
        "EpochEnded",
        "EpochEnded",
        "RunFinished",
    ]


def started(folder: Path, config: TrainConfig) -> RunStarted:
    setup: Any = SimpleNamespace(
        config=config,
        spec=SimpleNamespace(names=["dent"]),
        train_index=None,
        val_index=SimpleNamespace(paths=[folder / "no.jpg"]),
    )
    return RunStarted(folder, 0, setup)


def test_without_a_tracker_nothing_is_drawn(tmp_path: Path) -> None:
    listeners = Listeners([Tracker(open_tensorboard), Tracker(open_wandb)])
    listeners.tell(started(tmp_path, TrainConfig(tensorboard=False)))
    metrics: Any = object()  # a drawing would fail
    listeners.tell(EpochEnded(1, RECORD, lambda: Validation(metrics, {0: FOUND})))
    listeners.tell(RunFinished(None, 1, 1.0))
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_images_and_figures(tmp_path: Path) -> None:
    sink = open_tensorboard(tmp_path, TrainConfig())
    assert sink is not None
    for epoch in (1, 2):
        show_prediction(sink, 7, IMAGE, FOUND, ["dent"], epoch)
        sink.scalars(RECORD | {"epoch": epoch})
    sink.alert(ALERT, 2)
    sink.close()

    kept = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in kept.Scalars("val/map50")] == [1, 2]
    (text,) = kept.Tensors("alerts/text_summary")
    assert (text.step, text.tensor_proto.string_val[0].decode()) == (2, ALERT.line)
    images = kept.Images("prediction/7")
    assert [(event.step, event.width, event.height) for event in images] == [(1, 48, 32), (2, 48, 32)]
    (tmp_path / "shown.jpg").write_bytes(images[0].encoded_image_string)
    shown = decode_image(tmp_path / "shown.jpg")
    boxes, labels, scores = FOUND.boxes.numpy(), FOUND.labels.numpy(), FOUND.scores.numpy()
    drawn = draw_boxes(IMAGE, boxes, labels, ["dent"], scores).astype(int)
    assert np.abs(shown - drawn).mean() < 8 < np.abs(IMAGE - drawn).mean()  # apart from what a JPEG loses


def test_a_large_prediction_is_shown_small(tmp_path: Path) -> None:
    large = np.full((1000, 1600, 3), 90, np.uint8)
    found = Detections(torch.tensor([[400.0, 400, 1200, 800]]), torch.tensor([0.9]), torch.tensor([0]))
    shown: list[np.ndarray] = []
    sink: Any = SimpleNamespace(image=lambda name, image, epoch: shown.append(image))
    show_prediction(sink, 0, large, found, ["dent"], 1)
    boxes, labels, scores = found.boxes.numpy() * 0.4, found.labels.numpy(), found.scores.numpy()
    assert (shown[0] == draw_boxes(np.full((400, 640, 3), 90, np.uint8), boxes, labels, ["dent"], scores)).all()


@pytest.mark.parametrize("name", ["\udccf\udcee", "项目", "10:20 %d"])
def test_a_run_folder_may_be_called_anything(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    sink = TensorBoard(folder)
    show_prediction(sink, 7, IMAGE, FOUND, ["dent"], 1)
    sink.scalars(RECORD)
    sink.close()
    (folder / "tensorboard").rename(tmp_path / "plain")
    kept = EventAccumulator(str(tmp_path / "plain")).Reload()
    assert [event.value for event in kept.Scalars("val/map50")] == [0.25]


@pytest.mark.usefixtures("offline")
def test_weights_and_biases_gets_names_that_are_not_utf8_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "gbk \udccf"
    folder.mkdir()
    sink = WeightsAndBiases(folder, dataclasses.replace(WANDB, data="\udccf/data.yaml"))
    sink.scalars(RECORD)
    sink.close()
    rows, ids = rows_of(folder)
    assert [row["val/map50"] for row in rows if "val/map50" in row] == ["0.25"]
    assert ids == [f"yoloyard/gbk \\udccf/{(folder / 'wandb-id.txt').read_text()}"]
