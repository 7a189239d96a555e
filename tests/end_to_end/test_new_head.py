"""A head with a loss of its own in a file of its own: two lines make it one of the package, none a custom model."""

import json
from pathlib import Path

import pytest
import torch

import centre_head
from commands import TINY, Command
from yoloyard.common.boxes import complete_iou
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import LOSSES, build_criterion
from yoloyard.models import registry
from yoloyard.models.weights import load_model, read_weights, transfer
from yoloyard.training.listeners.results import read_records


@pytest.fixture(params=["in the package", "as a custom model"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What --model takes."""
    if request.param == "as a custom model":
        return f"{centre_head.__file__}:build"
    monkeypatch.setattr(centre_head.CentreHead, "criterion", "centre")
    monkeypatch.setitem(LOSSES, "centre", centre_head.build_loss)
    monkeypatch.setitem(registry.BUILDERS, "centre", centre_head.build)
    return "centre"


def test_a_new_head_is_trained_kept_evaluated_and_used(model: str, data: Path, yoloyard: Command) -> None:
    words = ["--model", model, "--data", data, *TINY[2:], "--class-weights", "balanced"]
    code, out, err = yoloyard("train", *words, "--epochs", 6, "--optimizer", "AdamW", "--lr0", 0.03, "--mosaic", 0)
    assert (code, err) == (0, ""), out
    records = read_records(Path("runs/line"))
    assert {name for name in records[0] if name.startswith("train/")} == {"train/box", "train/cls"}
    assert records[-1]["train/box"] < records[0]["train/box"]
    assert records[-1]["train/cls"] < 0.5 * records[0]["train/cls"]

    weights = Path("runs/line/weights/last.safetensors")
    assert yoloyard("val", "--weights", weights, "--data", data)[0] == 0
    figures = json.loads(Path("runs/val/metrics.json").read_text())
    assert figures == {name.removeprefix("val/"): v for name, v in records[-1].items() if name.startswith("val/")}
    assert yoloyard("predict", "--weights", weights, data.parent / "images" / "val")[0] == 0

    # it goes on, and its class rows are taken by name
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 7)[0] == 0
    detector, metadata = load_model(weights)
    assert metadata["epoch"] == 7
    report = transfer(registry.build(model, 2), read_weights(weights)[0], metadata["names"][2:0:-1], metadata["names"])
    assert report.classes == tuple(metadata["names"][2:0:-1])
    assert report.fresh == tuple(f"head.predictions.{level}.{part}" for level in (0, 1) for part in ("weight", "bias"))
    assert type(detector.head).__name__ == "CentreHead"


def test_its_loss_teaches_it_a_box_and_its_class() -> None:
    torch.manual_seed(0)
    detector = centre_head.build(num_classes=3)
    criterion, gains = build_criterion(detector.head, TrainConfig())
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.01)
    images, boxes, labels = torch.rand(1, 3, 64, 64), torch.tensor([[[10.0, 20, 50, 44]]]), torch.tensor([[2]])
    for _ in range(100):
        parts = criterion(detector(images), boxes, labels)
        optimizer.zero_grad()
        torch.stack([gain * (parts[name][0] / parts[name][1]).sum() for name, gain in gains.items()]).sum().backward()
        optimizer.step()
    _, found, _, classes = detector.decode_above(detector(images), 0.5, multi_label=False)
    assert classes.tolist() == [2, 2]  # on both levels
    assert (complete_iou(found, boxes[0]) > 0.8).all()


def test_its_candidates_are_those_of_all_decoded_boxes() -> None:
    torch.manual_seed(0)
    detector = centre_head.build(num_classes=3)
    with torch.no_grad():
        maps = detector(torch.rand(2, 3, 64, 64))
    boxes, scores = detector.decode(maps)
    images, found, values, labels = detector.decode_above(maps, 0.5, multi_label=True)
    assert len(values) == (scores > 0.5).sum() > 0
    for image, box, value, label in zip(images, found, values, labels, strict=True):
        assert ((boxes[image] == box).all(dim=1) & (scores[image, :, label] == value)).any()
