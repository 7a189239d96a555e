"""Networks with a block that goes wrong, as files of a user's own."""

import torch
from torch import Tensor, nn

from tiny_network import Tiny


class Growing(nn.Module):
    """Its output doubles with each call of its training, once it was called some times."""

    calls: Tensor

    def __init__(self, calm: int, doublings: int = 1) -> None:
        super().__init__()
        self.calm, self.doublings = calm, doublings
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return maps * 2 ** (self.doublings * (self.calls - self.calm).clamp(min=0))


class Exploding(Tiny):
    """The tiny network with maps that grow sixteenfold with each step after 120 of them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.block = Growing(120, 4)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = super().forward(images)
        return [self.block(maps[0]), maps[1]]


class ExplodingSoon(Exploding):
    """The same after 6 steps, and beyond all numbers in a few more."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.block = Growing(6, 60)


class BlackImage(Tiny):
    """The tiny network with images divided by their own brightness, which a black one does not have."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(images / images.mean(dim=(1, 2, 3), keepdim=True) / 2)


class LargeMaps(Tiny):
    """The tiny network with a factor that float16 can hold, and a gradient that it can't."""

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(self.stem(images))
        maps = self.head([fine, self.coarse(fine)])
        return [each + (each - each.detach()) * 3e7 for each in maps]
