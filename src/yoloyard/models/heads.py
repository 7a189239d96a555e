"""Heads: from feature maps to raw maps, and, apart from it, from raw maps to boxes and scores.

Shapes: B batch, C classes, L levels, A anchors a cell, h w cells of a level, P anchor points (cells of all levels;
with anchors, A for each cell), n points and classes of a batch whose score is above a threshold.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yoloyard.common.boxes import anchor_points
from yoloyard.models.blocks import Activation, Conv

MOST_LEVELS = 5  # of an anchor-based head: so many weights of levels are published
LOGIT_MARGIN = 0.1
BINS = 16  # the distance of a side is a distribution over 0 .. 15 cells

# Image int64 (n,), box float32 (n, 4) xyxy in input pixels, score (n,), class int64 (n,); in the order of points.
Found = tuple[Tensor, Tensor, Tensor, Tensor]


class AnchorFreeHead(nn.Module):
    """One box and one class branch a level; each cell predicts one box by the distances to its four sides.

    forward: one feature map a level to one raw map a level, (B, 64 + C, h, w): the box logits first, channel
    side * 16 + bin with the sides left, top, right, bottom, then the class logits. `decode` turns them into boxes.

    The class branch is made of plain 3x3 convolutions (YOLOv8) or of depthwise separable ones (YOLO11, YOLO12). Its
    width depends on the number of classes; `class_width` overrides it for weights that come from a network with
    another number. Sources: Tian et al., "FCOS" (2019); Li et al., "Generalized Focal Loss" (2020), section 3.2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int],
        depthwise: bool,
        class_width: int | None = None,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.num_classes = num_classes
        self.strides = tuple(strides)
        box_width = max(16, in_channels[0] // 4, 4 * BINS)
        class_width = class_width or max(in_channels[0], min(num_classes, 100))
        class_branch = _depthwise_branch if depthwise else _plain_branch
        # start as if an image of 640 x 640 held five objects for each level to find, spread evenly over the classes
        class_biases = [math.log(5 / num_classes / (640 / stride) ** 2) for stride in self.strides]
        self.box_branches = nn.ModuleList(
            _plain_branch(channels, box_width, 4 * BINS, 2.0, activation) for channels in in_channels
        )
        self.class_branches = nn.ModuleList(
            class_branch(channels, class_width, num_classes, bias, activation)
            for channels, bias in zip(in_channels, class_biases, strict=True)
        )
        # never trained, but a parameter and of this shape: so published parameter counts and files fit
        bins = torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1)
        self.projection = nn.Parameter(bins, requires_grad=False)

    @property
    def outputs(self) -> int:
        """Channels of a raw map."""
        return 4 * BINS + self.num_classes

    @property
    def last_layers(self) -> list[str]:
        """Names of the layers whose output channels belong to the classes."""
        return [f"class_branches.{level}.2" for level in range(len(self.strides))]

    def class_rows(self, num_classes: int) -> tuple[list[int], list[list[int]]]:
        """Output channels of a last layer for `num_classes`: those that belong to no class, and those of each class."""
        return [], [[row] for row in range(num_classes)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        branches = zip(features, self.box_branches, self.class_branches, strict=True)
        return [torch.cat((boxes(x), classes(x)), dim=1) for x, boxes, classes in branches]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes (B, P, 4), xyxy in input pixels, not clipped, and scores (B, P, C) in 0 .. 1, float32.

        The order of the points is that of `boxes.anchor_points`: level by level, row by row.
        """
        flat = torch.cat([level.flatten(2) for level in maps], dim=2).float()
        box_logits, class_logits = flat.split((4 * BINS, self.num_classes), dim=1)
        probabilities = box_logits.unflatten(1, (4, BINS)).softmax(dim=2)
        distances = (probabilities * self.projection.float().view(BINS, 1)).sum(dim=2)  # (B, 4, P) in cells
        left_top, right_bottom = distances.transpose(1, 2).split(2, dim=2)
        points, strides = anchor_points([(m.shape[2], m.shape[3]) for m in maps], self.strides, flat.device)
        boxes_xyxy = torch.cat((points - left_top, points + right_bottom), dim=2) * strides
        return boxes_xyxy, class_logits.sigmoid().transpose(1, 2)

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """What `decode` gives where a score is above `conf`, 0 .. 1; nothing else is computed.

        With `multi_label` a point comes once for each such class, else only for its best one.
        """
        parts = []
        # The sigmoid rises, so logits will do; in half precision the limit is rounded, hence the margin.
        limit = math.log(conf / (1 - conf)) - LOGIT_MARGIN if 0 < conf < 1 else -math.inf
        for level, stride in zip(maps, self.strides, strict=True):
            rows = level.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h * w, 64 + C), as it lies in memory in channels_last
            images, cells, labels, logits = _above(rows[..., 4 * BINS :], limit, multi_label)
            scores = logits.float().sigmoid()
            probabilities = rows[images, cells, : 4 * BINS].float().view(-1, 4, BINS).softmax(dim=2)
            left_top, right_bottom = (probabilities @ self.projection.float().flatten()).split(2, dim=1)
            points = _centres(cells, level.shape[3])
            boxes_xyxy = torch.cat((points - left_top, points + right_bottom), dim=1) * stride
            parts.append((images, boxes_xyxy, scores, labels))
        return _join(parts, conf)


class AnchorBasedHead(nn.Module):
    """One 1x1 convolution a level; each cell predicts one box for each of its anchors.

    forward: one feature map a level to one raw map a level, (B, A * (5 + C), h, w), channel anchor * (5 + C) + output
    with the outputs centre x, centre y, width, height, objectness, classes. `decode` turns them into boxes. `anchors`
    is (L, A, 2), width and height in pixels. Raises ValueError for more than 5 levels or strides that don't ascend.
    Sources: Redmon and Farhadi, "YOLOv3" (2018); YOLOv5 (2020).
    """

    anchors: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int],
        anchors: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
        super().__init__()
        if not len(in_channels) == len(strides) == len(anchors) <= MOST_LEVELS or list(strides) != sorted(set(strides)):
            raise ValueError(
                f"an AnchorBasedHead has at most {MOST_LEVELS} levels, strides ascending, input channels and anchors "
                f"for each; not strides {list(strides)}, {len(in_channels)} inputs, {len(anchors)} rows of anchors"
            )
        self.in_channels = tuple(in_channels)
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32))
        self.predictions = nn.ModuleList(nn.Conv2d(channels, self.outputs, 1) for channels in in_channels)
        for layer, stride in zip(self.predictions, self.strides, strict=True):
            self._add_to_biases(layer, stride)

    def _add_to_biases(self, layer: nn.Module, stride: int) -> None:
        """Start as if an image of 640 x 640 held eight objects for each level, spread evenly over the classes."""
        assert isinstance(layer.bias, Tensor)
        with torch.no_grad():
            biases = layer.bias.view(self.anchors.shape[1], -1)
            biases[:, 4] += math.log(8 / (640 / stride) ** 2)
            biases[:, 5:] += math.log(0.6 / (self.num_classes - 0.99999))

    @property
    def outputs(self) -> int:
        """Channels of a raw map."""
        return self.anchors.shape[1] * (5 + self.num_classes)

    @property
    def last_layers(self) -> list[str]:
        """Names of the layers whose output channels belong to the classes."""
        return [f"predictions.{level}" for level in range(len(self.strides))]

    def class_rows(self, num_classes: int) -> tuple[list[int], list[list[int]]]:
        """Output channels of a last layer for `num_classes`: those that belong to no class, and those of each class."""
        anchors, outputs = self.anchors.shape[1], 5 + num_classes
        shared = [anchor * outputs + row for anchor in range(anchors) for row in range(5)]
        return shared, [[anchor * outputs + row for anchor in range(anchors)] for row in range(5, outputs)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for x, layer in zip(features, self.predictions, strict=True)]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes (B, P, 4), xyxy in input pixels, not clipped, and scores (B, P, C) in 0 .. 1, float32.

        The score of a class is objectness times its probability. The order is level, anchor, row, column.
        """
        boxes, scores = [], []
        for level, stride, anchors in zip(maps, self.strides, self.anchors, strict=True):
            outputs = level.float().unflatten(1, (len(anchors), -1)).flatten(3).transpose(2, 3).sigmoid()
            points, _ = anchor_points([(level.shape[2], level.shape[3])], (stride,), level.device)
            centres = (2 * outputs[..., :2] - 1 + points) * stride  # (B, A, h * w, 2)
            sizes = (2 * outputs[..., 2:4]).square() * anchors.unsqueeze(1)
            boxes.append(torch.cat((centres - sizes / 2, centres + sizes / 2), dim=3).flatten(1, 2))
            scores.append((outputs[..., 4:5] * outputs[..., 5:]).flatten(1, 2))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """What `decode` gives where a score is above `conf`, 0 .. 1; nothing else is computed.

        With `multi_label` a point comes once for each such class, else only for its best one.
        """
        parts = []
        for level, stride, anchors in zip(maps, self.strides, self.anchors, strict=True):
            count, cells_of_anchor = len(anchors), level.shape[2] * level.shape[3]
            rows = level.unflatten(1, (count, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, A * h * w, 5 + C)
            objects = rows[..., 4].float().sigmoid()
            # A score is at most the objectness, so that most points need no look at their classes.
            images, places = (objects > conf).nonzero(as_tuple=True)
            outputs = rows[images, places].float().sigmoid()
            chosen, labels, scores = _above_rows(outputs[:, 4:5] * outputs[:, 5:], conf, multi_label)
            images, places, outputs = images[chosen], places[chosen], outputs[chosen]
            centres = (2 * outputs[:, :2] - 1 + _centres(places % cells_of_anchor, level.shape[3])) * stride
            sizes = (2 * outputs[:, 2:4]).square() * anchors[places // cells_of_anchor]
            parts.append((images, torch.cat((centres - sizes / 2, centres + sizes / 2), dim=1), scores, labels))
        return _join(parts, conf)


def _above(values: Tensor, limit: float, multi_label: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, cell and class where `values` (B, cells, C) are above `limit`, and these values; each (n,)."""
    if multi_label and values.shape[2] > 1:
        images, cells, labels = (values > limit).nonzero(as_tuple=True)
        return images, cells, labels, values[images, cells, labels]
    best, labels = values.max(dim=2)
    images, cells = (best > limit).nonzero(as_tuple=True)
    return images, cells, labels[images, cells], best[images, cells]


def _above_rows(scores: Tensor, conf: float, multi_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row, class and score where `scores` (rows, C) are above `conf`; each (n,)."""
    _, rows, labels, values = _above(scores.unsqueeze(0), conf, multi_label)
    return rows, labels, values


def _centres(cells: Tensor, width: int) -> Tensor:
    """Centres (n, 2), x and y in cells, of `cells` (n,) counted row by row in a level of `width`."""
    return torch.stack((cells % width, cells // width), dim=1) + 0.5


def _join(parts: Sequence[Found], conf: float) -> Found:
    """The levels' findings as one, without those whose score is not above `conf` after all."""
    images, boxes_xyxy, scores, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    sure = (scores > conf).nonzero()[:, 0]  # once: each index by a mask would ask the device how many there are
    return images[sure], boxes_xyxy[sure], scores[sure], labels[sure]


def _plain_branch(
    in_channels: int, width: int, out_channels: int, bias: float, activation: Activation
) -> nn.Sequential:
    return nn.Sequential(
        Conv(in_channels, width, 3, activation=activation),
        Conv(width, width, 3, activation=activation),
        _last_layer(width, out_channels, bias),
    )


def _depthwise_branch(
    in_channels: int, width: int, out_channels: int, bias: float, activation: Activation
) -> nn.Sequential:
    def separable(channels: int) -> nn.Sequential:
        return nn.Sequential(
            Conv(channels, channels, 3, groups=channels, activation=activation),
            Conv(channels, width, activation=activation),
        )

    return nn.Sequential(separable(in_channels), separable(width), _last_layer(width, out_channels, bias))


def _last_layer(in_channels: int, out_channels: int, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 1)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
