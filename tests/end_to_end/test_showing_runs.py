"""What training chooses to show is in its weights files and its report, and `predict` and `val` go by it."""

from pathlib import Path

import pytest

from commands import TINY, Command
from yoloyard.evaluation.metrics import coco
from yoloyard.evaluation.metrics.showing import Showing
from yoloyard.models.weights import read_weights, save_weights

CHOSEN = "confidence above 0.123, suppression at IoU 0.65"


def test_the_chosen_pair_goes_from_training_to_prediction(
    data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(coco, "choose_showing", lambda *_: Showing(0.123, 0.65))
        assert yoloyard("train", "--data", data, "--epochs", 1, *TINY)[0] == 0
    best, last = (Path(f"runs/line/weights/{name}.safetensors") for name in ("best", "last"))
    for weights in (best, last):
        assert read_weights(weights)[1]["showing"] == {"conf": 0.123, "iou": 0.65}
        assert read_weights(weights)[1]["evaluation"]["iou"] == 0.7  # figures stay as they are
    assert CHOSEN in Path("runs/line/report.html").read_text()

    image = data.parent / "images" / "val" / "0000.jpg"
    assert f"shown: {CHOSEN}\n" in yoloyard("predict", "--weights", best, image)[1]
    out = yoloyard("predict", "--weights", best, image, "--conf", 0.5, "--iou", 0.3)[1]
    assert "shown: confidence above 0.5, suppression at IoU 0.3\n" in out
    assert "{'conf': 0.123, 'iou': 0.65}" in yoloyard("info", best)[1]

    assert yoloyard("val", "--weights", best, "--data", data)[0] == 0
    assert CHOSEN in Path("runs/val/report.html").read_text()
    assert "score above 0.001, IoU 0.7" in Path("runs/val/report.html").read_text()

    state, metadata = read_weights(best)
    del metadata["showing"]
    older = best.with_name("older.safetensors")  # beside the network's file
    save_weights(older, state, metadata)
    assert f"shown: {Showing()}\n" in yoloyard("predict", "--weights", older, image)[1]
    assert yoloyard("val", "--weights", older, "--data", data)[0] == 0
