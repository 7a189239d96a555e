"""The head of YOLOv8 and its successors: a box for each cell.

Shapes: B batch, C classes, h w cells of a level, P anchor points (cells of all levels).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from yoloyard.common.boxes import anchor_points
from yoloyard.models.blocks import Activation, Conv
from yoloyard.models.heads.head import Found, Head, above, centres, join

LOGIT_MARGIN = 0.1
BINS = 16  # the distance of a side is a distribution over 0 .. 15 cells
MIN_BOX_WIDTH = 16  # channels of a box branch


class AnchorFreeHead(Head):
    """One box and one class branch a level; each cell predicts one box by the distances to its four sides.

    A raw map is (B, 4 * bins + C, h, w): the box logits first, channel side * bins + bin with the sides left, top,
    right, bottom, then the class logits. With `bins=1` there is no distribution: the four numbers are the distances in
    cells, which may be negative.

    The class branch is made of plain 3x3 convolutions (YOLOv8) or of depthwise separable ones (YOLO11 and later). Its
    width depends on the number of classes; `class_width` overrides it for weights that come from a network with
    another number. `box_bias` is what the box branch begins with, `class_bias` the class branch, without one by the
    number of classes. `box_groups` are those of the box branch behind its first convolution. `needs_suppression=False`
    is for the branches of an `EndToEndHead` that have learned to find each object once. Sources: Tian et al., "FCOS"
    (2019); Li et al., "Generalized Focal Loss" (2020), section 3.2.
    """

    criterion = "task_aligned"
    published_names: Mapping[str, str] = {
        "box_branches": "cv2",
        "class_branches": "cv3",
        "projection": "dfl.conv.weight",
    }

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int],
        depthwise: bool,
        class_width: int | None = None,
        activation: Activation = nn.SiLU,
        bins: int = BINS,
        box_bias: float = 2.0,
        needs_suppression: bool = True,
        class_bias: float | None = None,
        box_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, num_classes, strides, 4 * bins + num_classes)
        self.bins, self.needs_suppression = bins, needs_suppression
        if not needs_suppression:  # as they were called beside the others
            one_to_one = {"box_branches": "one2one_cv2", "class_branches": "one2one_cv3"}
            self.published_names = {**self.published_names, **one_to_one}
        box_width = max(MIN_BOX_WIDTH, in_channels[0] // 4, 4 * bins)
        class_width = class_width or max(in_channels[0], min(num_classes, 100))
        # start as if an image of 640 x 640 held five objects for each level to find, spread evenly over the classes
        class_biases = [
            math.log(5 / num_classes / (640 / stride) ** 2) if class_bias is None else class_bias for stride in strides
        ]
        self.box_branches = nn.ModuleList(
            _branch(channels, box_width, 4 * bins, box_bias, False, activation, box_groups) for channels in in_channels
        )
        self.class_branches = nn.ModuleList(
            _branch(channels, class_width, num_classes, bias, depthwise, activation)
            for channels, bias in zip(in_channels, class_biases, strict=True)
        )
        # never trained, but a parameter and of this shape: so published parameter counts and files fit
        cells = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)
        self.projection = nn.Parameter(cells, requires_grad=False) if bins > 1 else None

    @property
    def last_layers(self) -> list[str]:
        return [f"class_branches.{level}.2" for level in range(len(self.strides))]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return apply_branches(features, self.box_branches, self.class_branches)

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `Head.decode` says, in the order of `boxes.anchor_points`: level by level, row by row."""
        flat = torch.cat([level.flatten(2) for level in maps], dim=2).float()
        distances, class_logits = flat.split((4 * self.bins, self.num_classes), dim=1)
        if self.projection is not None:
            probabilities = distances.unflatten(1, (4, self.bins)).softmax(dim=2)
            distances = (probabilities * self.projection.float().view(self.bins, 1)).sum(dim=2)  # (B, 4, P) in cells
        left_top, right_bottom = distances.transpose(1, 2).split(2, dim=2)
        points, strides = anchor_points([(m.shape[2], m.shape[3]) for m in maps], self.strides, flat.device)
        boxes_xyxy = torch.cat((points - left_top, points + right_bottom), dim=2) * strides
        return boxes_xyxy, class_logits.sigmoid().transpose(1, 2)

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """As `Head.decode_above` says; nothing else is computed."""
        levels = []
        # The sigmoid rises, so logits will do; in half precision the limit is rounded, hence the margin.
        limit = math.log(conf / (1 - conf)) - LOGIT_MARGIN if 0 < conf < 1 else -math.inf
        for level, stride in zip(maps, self.strides, strict=True):
            rows = level.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h * w, outputs), as it lies in memory in channels_last
            images, cells, labels, logits = above(rows[..., 4 * self.bins :], limit, multi_label)
            distances = rows[images, cells, : 4 * self.bins].float()  # (n, 4) in cells
            if self.projection is not None:
                distances = distances.view(-1, 4, self.bins).softmax(dim=2) @ self.projection.float().flatten()
            left_top, right_bottom = distances.split(2, dim=1)
            points = centres(cells, level.shape[3])
            boxes_xyxy = torch.cat((points - left_top, points + right_bottom), dim=1) * stride
            levels.append((images, boxes_xyxy, logits.float().sigmoid(), labels))
        return join(levels, conf)


def apply_branches(features: Sequence[Tensor], boxes: nn.ModuleList, classes: nn.ModuleList) -> list[Tensor]:
    """Raw maps (B, 4 * bins + C, h, w) of feature maps, by the box and the class branch of each level."""
    return [torch.cat((box(x), cls(x)), dim=1) for x, box, cls in zip(features, boxes, classes, strict=True)]


def _branch(
    in_channels: int,
    width: int,
    out_channels: int,
    bias: float,
    depthwise: bool,
    activation: Activation,
    groups: int = 1,
) -> nn.Sequential:
    """Two 3x3 convolutions, plain or depthwise separable, and a 1x1 convolution whose biases begin with `bias`.

    The second and the last one have `groups`.
    """
    spatial = [
        nn.Sequential(
            Conv(channels, channels, 3, groups=channels, activation=activation),
            Conv(channels, width, activation=activation),
        )
        if depthwise
        else Conv(channels, width, 3, groups=part, activation=activation)
        for channels, part in ((in_channels, 1), (width, groups))
    ]
    last = nn.Conv2d(width, out_channels, 1, groups=groups)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(*spatial, last)
