"""The head of YOLO26: branches that find each object many times, and branches that find it once.

Shapes: B batch, C classes, h w cells of a level.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from yoloyard.models.heads.anchor_free import AnchorFreeHead, apply_branches
from yoloyard.models.heads.head import Found


class EndToEndHead(AnchorFreeHead):
    """An `AnchorFreeHead` with a second pair of branches a level, whose boxes need no suppression.

    A raw map is (B, 2 * (4 * bins + C), h, w): that of the one-to-many branches first, then that of the one-to-one
    branches. These begin as copies and see the features detached: backbone and neck learn from the one-to-many
    branches alone. Decoding takes the one-to-many branches; `keep_path` leaves one pair only, and then the maps are
    those of an `AnchorFreeHead`. Source: Wang et al., "YOLOv10" (2024), section 3.1, without its matching metric.
    """

    criterion = "end_to_end"
    published_names: Mapping[str, str] = {
        **AnchorFreeHead.published_names,
        "one_to_one_box_branches": "one2one_cv2",
        "one_to_one_class_branches": "one2one_cv3",
    }
    begins_as: ClassVar = {
        "one_to_one_box_branches": "box_branches",
        "one_to_one_class_branches": "class_branches",
    }

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.path_outputs = self.outputs  # of one pair of branches
        self.outputs = 2 * self.path_outputs
        self.one_to_one_box_branches = copy.deepcopy(self.box_branches)
        self.one_to_one_class_branches = copy.deepcopy(self.class_branches)
        self.has_both = True

    @property
    def paths(self) -> tuple[str, ...]:
        return ("on", "off") if self.has_both else super().paths

    @property
    def last_layers(self) -> list[str]:
        own = super().last_layers
        return [*own, *(f"one_to_one_{name}" for name in own)] if self.has_both else own

    def keep_path(self, suppression: bool) -> None:
        """As `Head.keep_path` says."""
        super().keep_path(suppression)
        if not self.has_both:
            return
        if not suppression:
            self.box_branches, self.class_branches = self.one_to_one_box_branches, self.one_to_one_class_branches
        del self.one_to_one_box_branches, self.one_to_one_class_branches
        self.has_both, self.outputs, self.needs_suppression = False, self.path_outputs, suppression

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        many = super().forward(features)
        if not self.has_both:
            return many
        detached = [level.detach() for level in features]
        one = apply_branches(detached, self.one_to_one_box_branches, self.one_to_one_class_branches)
        return [torch.cat(pair, dim=1) for pair in zip(many, one, strict=True)]

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `Head.decode` says, of the one-to-many branches where there are both."""
        return super().decode([level[:, : self.path_outputs] for level in maps])

    def decode_above(self, maps: Sequence[Tensor], conf: float, multi_label: bool) -> Found:
        """As `Head.decode_above` says, of the one-to-many branches where there are both."""
        return super().decode_above([level[:, : self.path_outputs] for level in maps], conf, multi_label)
