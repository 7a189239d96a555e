"""The head of YOLOv9: box branches in groups, and in training a second set of branches on features of their own.

Shapes: B batch, C classes, h w cells of a level.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yoloyard.models.heads.anchor_free import AnchorFreeHead, apply_branches
from yoloyard.models.heads.head import Found

BOX_GROUPS = 4  # a side each
BOX_BIAS, CLASS_BIAS = 1.0, -10.0  # what the last layers begin with


class AuxiliaryHead(AnchorFreeHead):
    """An `AnchorFreeHead` that may have auxiliary branches for `auxiliary_channels` of a level, which only train.

    With them it takes twice as many features, its own first, and a raw map is (B, 2 * (64 + C), h, w), that of its own
    branches first. Decoding takes the latter, and `keep_path` leaves only these. Gradients of both flow on.

    Source: Wang et al., "YOLOv9" (2024), section 4.1; widths and first values are those of the MIT implementation of
    MultimediaTechLab.
    """

    criterion = "auxiliary"

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        strides: Sequence[int],
        auxiliary_channels: Sequence[int] | None,
        class_width: int | None = None,
        auxiliary_class_width: int | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, strides, **_arguments(in_channels, num_classes, class_width))
        self.path_outputs = self.outputs  # of one set of branches
        self.has_auxiliary = auxiliary_channels is not None
        if auxiliary_channels is not None:
            arguments = _arguments(auxiliary_channels, num_classes, auxiliary_class_width)
            other = AnchorFreeHead(auxiliary_channels, num_classes, strides, **arguments)
            self.auxiliary_box_branches, self.auxiliary_class_branches = other.box_branches, other.class_branches
            self.outputs = 2 * self.path_outputs

    @property
    def last_layers(self) -> list[str]:
        own = super().last_layers
        return [*own, *(f"auxiliary_{name}" for name in own)] if self.has_auxiliary else own

    def keep_path(self, suppression: bool) -> None:
        """As `Head.keep_path` says."""
        super().keep_path(suppression)
        if self.has_auxiliary:
            del self.auxiliary_box_branches, self.auxiliary_class_branches
            self.has_auxiliary, self.outputs = False, self.path_outputs

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = len(self.strides)
        own = super().forward(features[:levels])
        if not self.has_auxiliary:
            return own
        more = apply_branches(features[levels:], self.auxiliary_box_branches, self.auxiliary_class_branches)
        return [torch.cat(pair, dim=1) for pair in zip(own, more, strict=True)]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `Head.decode` says, of its own branches."""
        return super().decode([level[:, : self.path_outputs] for level in maps])

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """As `Head.decode_above` says, of its own branches."""
        return super().decode_above([level[:, : self.path_outputs] for level in maps], conf, multi_label)


def _arguments(in_channels: Sequence[int], num_classes: int, class_width: int | None) -> dict[str, Any]:
    return {
        "depthwise": False,
        "class_width": class_width or max(in_channels[0], min(2 * num_classes, 128)),
        "box_bias": BOX_BIAS,
        "class_bias": CLASS_BIAS,
        "box_groups": BOX_GROUPS,
    }
