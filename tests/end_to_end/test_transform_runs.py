"""A run with a transform of the user's own, from Python and from the command line, and how it goes on."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

import yoloyard as package
from commands import TINY, TINY_NETWORK, Command
from yoloyard.common.errors import UsageError
from yoloyard.models.weights import read_weights
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners.events import EpochEnded, Event

WORDS: dict[str, Any] = {
    "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "nbs": 8, "amp": False, "tensorboard": False, "device": "cpu",
    "epochs": 2, "workers": 0,
}  # fmt: skip
PIPELINE = A.Compose(
    [A.RandomRotate90(), A.RandomSizedBBoxSafeCrop(48, 48, p=0.5)],
    bbox_params=A.BboxParams(format="pascal_voc", label_fields=["kinds"]),
)


def upside_down(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if np.random.random() < 0.5:
        return image, boxes, labels
    height = image.shape[0]
    return image[::-1], np.stack((boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), 1), labels


def stop_after_the_first_epoch(event: Event) -> None:
    if isinstance(event, EpochEnded) and event.epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)


def equal(one: Path, other: Path) -> bool:
    first, _ = read_weights(one / "weights" / "last.safetensors")
    second, _ = read_weights(other / "weights" / "last.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("transform", [PIPELINE, upside_down])
def test_a_run_with_a_transform_is_stopped_and_goes_on_bit_equal(data: Path, transform: Any) -> None:
    whole = package.train(data=data, name="whole", transform=transform, **WORDS)
    with pytest.raises(Interrupted):
        package.train(data=data, name="parts", transform=transform, on_event=stop_after_the_first_epoch, **WORDS)
    if transform is upside_down:
        with pytest.raises(UsageError, match=r"hand it in again: yoloyard\.train\(resume='runs/parts', transform=upsi"):
            package.train(resume="runs/parts")
        package.train(resume="runs/parts", transform=transform)
        plain = package.train(data=data, name="plain", **WORDS)
        assert not equal(whole.folder, plain.folder)
    else:
        package.train(resume="runs/parts")  # from the run's own copy
    assert equal(whole.folder, Path("runs/parts"))


def test_a_transform_in_a_file_is_used_from_the_runs_copy(data: Path, yoloyard: Command) -> None:
    text = "import numpy as np\ndef darker(image, boxes, labels):\n    return np.minimum(image, 200), boxes, labels\n"
    file = Path("my_transform.py")
    file.write_text(text)
    words = ["train", "--data", data, "--transform", "my_transform.py:darker", "--epochs", 1, *TINY]
    code, _, err = yoloyard(*words)
    assert (code, err) == (0, "")
    assert Path("runs/line/my_transform.py").read_text() == text
    assert f"transform: {file.absolute()}:darker" in Path("runs/line/config.yaml").read_text()
    facts = json.loads(Path("runs/line/checkpoints/last/state.json").read_text())
    assert facts["spec"]["transform"]["kind"] == "file"
    file.write_text("this is no longer Python")
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 2)[0] == 0

    code, _, err = yoloyard(*words)
    assert code == 1
    assert "my_transform.py, line 1 (`this is no longer Python`): SyntaxError" in err
    file.write_text(text.replace("200", "image.wrong"))
    code, _, err = yoloyard(*words)
    assert code == 1
    assert err.count("\n") == 1
    assert re.search(r"images/train/\S+: \S+my_transform\.py, line 3 \(.*\): AttributeError", err)


def test_a_model_and_a_transform_of_one_name_would_overwrite_each_other(data: Path, yoloyard: Command) -> None:
    Path("own.py").write_text("from yoloyard.models import yolo11\ndef build(n):\n    return yolo11.build('n', n)\n")
    Path("other").mkdir()
    Path("other/own.py").write_text("def same(image, boxes, labels):\n    return image, boxes, labels\n")
    code, _, err = yoloyard("train", "--data", data, "--model", "own.py:build", "--transform", "other/own.py:same")
    assert code == 2
    assert "have the same name" in err
