"""A head with a loss of its own, all in one file: the example of docs/new-family.md, trained by a test.

Shapes: B batch, M boxes per image (padded), C classes, L levels, h w cells of a level, P points (cells of all levels).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from yoloyard.common.boxes import anchor_points, complete_iou
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import Criterion
from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import Head


class CentreLoss:
    """`criterion(maps, boxes, labels)`: the cell at a box's centre learns the box, on every level."""

    def __init__(self, strides: Sequence[int], class_weights: Tensor | None) -> None:
        self.strides, self.class_weights = strides, class_weights

    def __call__(self, maps: list[Tensor], boxes_xyxy: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums (L,) and norms (L,) of `box` and `cls`; boxes (B, M, 4) pixels, labels (B, M), -1 in padded slots."""
        is_box, classes = labels >= 0, labels.clamp(min=0)
        images = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
        box, cls = [], []
        for level, stride in zip(maps, self.strides, strict=True):
            height, width = level.shape[2:]
            x, y = ((boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2 / stride).long().unbind(-1)
            x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
            rows = level.float().flatten(2).transpose(1, 2)  # (B, h * w, 4 + C)
            own = rows[images, y * width + x, :4]  # (B, M, 4)
            predicted = boxes_at(own, torch.stack((x, y), dim=2) + 0.5, stride)
            box.append(torch.where(is_box, 1 - complete_iou(predicted, boxes_xyxy), 0).sum())
            target = torch.zeros_like(rows[..., 4:])
            target = target.index_put((images, y * width + x, classes), is_box.float(), accumulate=True).clamp(max=1)
            entropy = binary_cross_entropy_with_logits(rows[..., 4:], target, self.class_weights, reduction="sum")
            cls.append(entropy)
        norms = is_box.sum().float().expand(len(maps))
        return {"box": (torch.stack(box), norms), "cls": (torch.stack(cls), norms)}


def build_loss(
    head: Any, config: TrainConfig, class_weights: Tensor | None, free_bytes: int | None
) -> tuple[Criterion, dict[str, float]]:
    """The loss and the gain of each of its parts, see `losses.Builder`."""
    return CentreLoss(head.strides, class_weights), {"box": config.loss.box, "cls": config.loss.cls}


class CentreHead(Head):
    """One 1x1 convolution a level; a raw map is (B, 4 + C, h, w), distances to four sides, then class logits."""

    criterion = build_loss  # in the package: its name in LOSSES

    def __init__(self, in_channels: Sequence[int], num_classes: int, strides: Sequence[int]) -> None:
        super().__init__(in_channels, num_classes, strides, outputs=4 + num_classes)
        self.predictions = nn.ModuleList(nn.Conv2d(channels, self.outputs, 1) for channels in in_channels)

    @property
    def last_layers(self) -> list[str]:
        """Names of the layers whose output channels belong to the classes."""
        return [f"predictions.{level}" for level in range(len(self.strides))]

    def class_rows(self, num_classes: int) -> tuple[list[int], list[list[int]]]:
        """Output channels of a last layer: those that belong to no class, and those of each class."""
        return [0, 1, 2, 3], [[4 + label] for label in range(num_classes)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for x, layer in zip(features, self.predictions, strict=True)]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes (B, P, 4), xyxy in input pixels, and scores (B, P, C) in 0 .. 1, float32."""
        rows = torch.cat([level.flatten(2) for level in maps], dim=2).float().transpose(1, 2)
        points, strides = anchor_points([(m.shape[2], m.shape[3]) for m in maps], self.strides, rows.device)
        return boxes_at(rows[..., :4], points, strides), rows[..., 4:].sigmoid()


def boxes_at(distances: Tensor, points: Tensor, stride: Tensor | int) -> Tensor:
    """Boxes xyxy (..., 4) in pixels around `points` (..., 2) in cells; `distances` (..., 4) before softplus."""
    left_top, right_bottom = softplus(distances).split(2, dim=-1)
    return torch.cat((points - left_top, points + right_bottom), dim=-1) * stride


class Centre(Detector):
    """A few convolutions with this head; strides 8 and 32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.fine, self.coarse = Conv(3, 16, 7, 4), Conv(16, 32, 3, 2), Conv(32, 32, 5, 4)
        self.head = CentreHead((32, 32), num_classes, (8, 32))

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(self.stem(images))
        return self.head([fine, self.coarse(fine)])


def build(num_classes: int, channels: int = 3) -> Centre:
    """The detector, as the registry and a custom model want it."""
    return Centre(num_classes)
