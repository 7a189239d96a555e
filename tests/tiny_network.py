"""A network of some ten convolutions, as a file of a user's own: for tests of what happens around a network."""

from typing import Any

from torch import Tensor

from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead


class Tiny(Detector):
    """Strides 8 and 32, eight channels throughout. `kind` of head, and what it takes besides."""

    def __init__(self, num_classes: int, kind: type[AnchorFreeHead] = AnchorFreeHead, **more: Any) -> None:
        super().__init__()
        self.stem = Conv(3, 8, 7, 4, padding=3)
        self.fine = Conv(8, 8, 3, 2)
        self.coarse = Conv(8, 8, 5, 4, padding=2)
        self.head = kind((8, 8), num_classes, (8, 32), depthwise=False, class_width=8, **more)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(self.stem(images))
        return self.head([fine, self.coarse(fine)])
