"""The head of YOLOv5: a box for each anchor of a cell.

Shapes: B batch, C classes, L levels, A anchors a cell, h w cells of a level, P anchor points (A for each cell).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from yoloyard.common.boxes import anchor_points
from yoloyard.models.heads.head import Found, Head, above, centres, join

MAX_LEVELS = 5  # weights of so many levels are published


class AnchorBasedHead(Head):
    """One 1x1 convolution a level; each cell predicts one box for each of its anchors.

    A raw map is (B, A * (5 + C), h, w), channel anchor * (5 + C) + output with the outputs centre x, centre y, width,
    height, objectness, classes. `anchors` is (L, A, 2), width and height in pixels. Raises ValueError for more than 5
    levels or strides that don't ascend. Sources: Redmon and Farhadi, "YOLOv3" (2018); YOLOv5 (2020).
    """

    criterion = "anchor_based"
    constants = ("anchors",)
    learns_single_class = False  # the objectness alone says what there is
    published_names: Mapping[str, str] = {"predictions": "m"}
    anchors: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int],
        anchors: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
        if not len(in_channels) == len(strides) == len(anchors) <= MAX_LEVELS or list(strides) != sorted(set(strides)):
            raise ValueError(
                f"an AnchorBasedHead has at most {MAX_LEVELS} levels, strides ascending, input channels and anchors "
                f"for each; not strides {list(strides)}, {len(in_channels)} inputs, {len(anchors)} rows of anchors"
            )
        super().__init__(in_channels, num_classes, strides, len(anchors[0]) * (5 + num_classes))
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32))
        self.predictions = nn.ModuleList(nn.Conv2d(channels, self.outputs, 1) for channels in in_channels)
        # start as if an image of 640 x 640 held eight objects for each level to find, spread evenly over the classes
        for layer, stride in zip(self.predictions, self.strides, strict=True):
            assert isinstance(layer.bias, Tensor)
            with torch.no_grad():
                biases = layer.bias.view(self.anchors.shape[1], -1)
                biases[:, 4] += math.log(8 / (640 / stride) ** 2)
                biases[:, 5:] += math.log(0.6 / (num_classes - 0.99999))

    @property
    def last_layers(self) -> list[str]:
        return [f"predictions.{level}" for level in range(len(self.strides))]

    def class_rows(self, num_classes: int) -> tuple[list[int], list[list[int]]]:
        anchors, outputs = self.anchors.shape[1], 5 + num_classes
        shared = [anchor * outputs + row for anchor in range(anchors) for row in range(5)]
        return shared, [[anchor * outputs + row for anchor in range(anchors)] for row in range(5, outputs)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for x, layer in zip(features, self.predictions, strict=True)]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `Head.decode` says; a score is objectness times probability, the order level, anchor, row, column."""
        boxes, scores = [], []
        for level, stride, anchors in zip(maps, self.strides, self.anchors, strict=True):
            outputs = level.float().unflatten(1, (len(anchors), -1)).flatten(3).transpose(2, 3).sigmoid()
            points, _ = anchor_points([(level.shape[2], level.shape[3])], (stride,), level.device)
            boxes.append(_boxes(outputs, points, stride, anchors.unsqueeze(1)).flatten(1, 2))
            scores.append((outputs[..., 4:5] * outputs[..., 5:]).flatten(1, 2))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """As `Head.decode_above` says; nothing else is computed."""
        levels = []
        for level, stride, anchors in zip(maps, self.strides, self.anchors, strict=True):
            count, cells = len(anchors), level.shape[2] * level.shape[3]
            rows = level.unflatten(1, (count, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, A * h * w, 5 + C)
            objects = rows[..., 4].float().sigmoid()
            # A score is at most the objectness, so that most points need no look at their classes.
            images, points = (objects > conf).nonzero(as_tuple=True)
            outputs = rows[images, points].float().sigmoid()
            _, chosen, labels, scores = above((outputs[:, 4:5] * outputs[:, 5:]).unsqueeze(0), conf, multi_label)
            images, points, outputs = images[chosen], points[chosen], outputs[chosen]
            places = centres(points % cells, level.shape[3])
            levels.append((images, _boxes(outputs, places, stride, anchors[points // cells]), scores, labels))
        return join(levels, conf)


def _boxes(outputs: Tensor, points: Tensor, stride: int, anchors: Tensor) -> Tensor:
    """Boxes xyxy (..., 4) in pixels of sigmoids (..., 5 + C) at `points` (..., 2) in cells, anchors in pixels."""
    middles = (2 * outputs[..., :2] - 1 + points) * stride
    sizes = (2 * outputs[..., 2:4]).square() * anchors
    return torch.cat((middles - sizes / 2, middles + sizes / 2), dim=-1)
