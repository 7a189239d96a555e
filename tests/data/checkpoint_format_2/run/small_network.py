"""A network of four convolutions, for a checkpoint that is small."""

from torch import Tensor

from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead


class Small(Detector):
    """Strides 8 and 32, eight channels throughout."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = Conv(3, 8, 7, 4, padding=3)
        self.fine = Conv(8, 8, 3, 2)
        self.coarse = Conv(8, 8, 5, 4, padding=2)
        self.head = AnchorBasedHead((8, 8), num_classes, (8, 32), [[(8, 8), (16, 16)], [(32, 32), (48, 48)]])

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(self.stem(images))
        return self.head([fine, self.coarse(fine)])
