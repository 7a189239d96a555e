"""A network in a file of the user's: built, looked at, and explained by the user's own line."""

from pathlib import Path

import pytest
import torch

from yoloyard.common.errors import UsageError, UserError
from yoloyard.models import custom_model as custom_model
from yoloyard.models import registry
from yoloyard.models.heads import AnchorBasedHead

NETWORK = """\
from torch import nn
from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead, AnchorFreeHead, Head

class Own(Detector):
    def __init__(self, head, stride):
        super().__init__()
        self.body = Conv(3, 16, 3, stride=stride)
        self.head = head

    def forward(self, images):
        x = self.body(images)
        return self.head([x])

def build(num_classes):
    return Own(AnchorFreeHead([16], num_classes, (8,), depthwise=False), 8)

def with_anchors(num_classes):
    return Own(AnchorBasedHead([16], num_classes, (8,), [[(10, 10), (20, 30)]]), 8)

def wrong_stride(num_classes):
    return Own(AnchorFreeHead([16], num_classes, (8,), depthwise=False), 4)

def wrong_width(num_classes):
    return Own(AnchorFreeHead([24], num_classes, (8,), depthwise=False), 8)

def wrong_classes(num_classes):
    return Own(AnchorFreeHead([16], 80, (8,), depthwise=False), 8)

def too_many_levels(num_classes):
    return Own(AnchorBasedHead([16] * 6, num_classes, [8 * 2**i for i in range(6)], [[(10, 10)]] * 6), 8)

def leaves(num_classes):
    raise SystemExit(3)

def no_detector(num_classes):
    return nn.Linear(2, 2)

def stumbles(num_classes):
    return 1 / 0

number = 3

class Odd(Own):
    def forward(self, images):
        return self.body(images, images)

def wrong_line(num_classes):
    return Odd(AnchorFreeHead([16], num_classes, (8,), depthwise=False), 8)

class Narrow(Own):
    def forward(self, images):
        return [level[..., :2] for level in super().forward(images)]

def wrong_output(num_classes):
    return Narrow(AnchorFreeHead([16], num_classes, (8,), depthwise=False), 8)

class Twice(Own):
    def forward(self, images):
        return super().forward(images) * 2

def wrong_count(num_classes):
    return Twice(AnchorFreeHead([16], num_classes, (8,), depthwise=False), 8)

class Bare(Head):
    pass

def no_head(num_classes):
    return Own(nn.Conv2d(16, 64 + num_classes, 1), 8)

def no_criterion(num_classes):
    return Own(Bare([16], num_classes, [8], 64), 8)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(NETWORK)
    return path


def test_the_function_makes_the_detector(file: Path) -> None:
    detector = registry.build(f"{file}:build", num_classes=4)
    assert detector.training
    assert [tuple(level.shape) for level in detector(torch.rand(2, 3, 32, 64))] == [(2, 68, 4, 8)]
    anchor_based = registry.build(f"{file}:with_anchors", num_classes=4)
    assert isinstance(anchor_based.head, AnchorBasedHead)
    boxes_xyxy, scores = anchor_based.decode(anchor_based(torch.rand(1, 3, 32, 32)))
    assert (boxes_xyxy.shape, scores.shape) == ((1, 32, 4), (1, 32, 4))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_stride", r"the head wants \(1, 16, 4, 4\) at level 0 with stride 8 for .*, came \(1, 16, 8, 8\)"),
        ("wrong_width", r"the head wants \(1, 24, 4, 4\) at level 0 with stride 8 for .*, came \(1, 16, 4, 4\)"),
        ("wrong_output", r"forward must return \(1, 66, 4, 4\) at level 0 with stride 8 .*, came \(1, 66, 4, 2\)"),
        ("wrong_count", "forward must return 1 maps, one a stride, came 2 maps"),
        ("wrong_line", r"my_model\.py, line 47 \(`return self\.body\(images, images\)`\): TypeError"),
        ("no_head", "head` must be a Head of yoloyard.models.heads"),
        ("no_criterion", "the head must have a `criterion`"),
        ("wrong_classes", "the head has 80 classes, the data 2"),
        ("no_detector", "no_detector must return a yoloyard Detector, not Linear"),
        ("stumbles", r"my_model\.py, line 41 \(`return 1 / 0`\): ZeroDivisionError"),
        ("too_many_levels", "at most 5 levels"),
        ("leaves", r"line 35 \(`raise SystemExit\(3\)`\): SystemExit: 3"),
        ("missing", "has no function missing"),
        ("number", "has no function number"),
    ],
)
def test_what_is_wrong_is_told_in_the_users_terms(file: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        registry.build(f"{file}:{function}", num_classes=2)
    assert "\n" not in str(caught.value)


def test_a_broken_file_shows_its_line(file: Path) -> None:
    file.write_text("import torch\ndef build(num_classes)\n    return None\n")
    with pytest.raises(UserError, match=r"my_model\.py, line 2 \(`def build\(num_classes\)`\): SyntaxError"):
        registry.build(f"{file}:build", num_classes=2)
    with pytest.raises(UsageError, match=r"cannot read the model .*other\.py"):
        registry.build(f"{file.parent}/other.py:build", num_classes=2)
    with pytest.raises(UsageError, match=r"say which function .*my_model\.py:build"):
        registry.build(str(file), num_classes=2)


def test_a_file_is_run_as_plain_python(file: Path) -> None:
    """Nothing of how this project is compiled reaches it: annotations stay what they are."""
    file.write_text(
        "from dataclasses import dataclass, fields\n@dataclass\nclass Sizes:\n    width: int = 3\n"
        "assert fields(Sizes)[0].type is int\n" + NETWORK
    )
    assert registry.build(f"{file}:build", num_classes=2).num_classes == 2


def test_an_edited_file_is_read_anew(file: Path) -> None:
    word = f"{file}:build"
    assert registry.build(word, num_classes=2).get_submodule("body.conv").out_channels == 16
    file.write_text(NETWORK.replace("16", "32"))
    assert registry.build(word, num_classes=2).get_submodule("body.conv").out_channels == 32


def test_a_kept_copy_must_be_the_one_that_was_trained_with(file: Path, tmp_path: Path) -> None:
    own = custom_model.read_custom(f"{file}:build")
    weights = tmp_path / "weights" / "best.safetensors"
    metadata = {"model": own.word, "model_digest": own.digest}
    assert custom_model.beside(weights, metadata).path == file
    file.write_text(NETWORK + "# changed\n")
    with pytest.raises(UserError, match="is not the file that these weights were trained with"):
        custom_model.beside(weights, metadata)
    file.unlink()
    with pytest.raises(UserError, match=r"belong to the network in my_model\.py, which is not beside them"):
        custom_model.beside(weights, metadata)
