"""The tiny network with both kinds of branches, as a file of a user's own; in it they find different things.

Untrained, the branches that need no suppression find around each cell a box of 8 pixels, or one that holds the whole
image and so is a duplicate, with scores of about one half. The others find nothing.
"""

import torch

from tiny_network import Tiny
from yoloyard.models.heads import EndToEndHead


class BothPaths(Tiny):
    """`Tiny` with another head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = EndToEndHead((8, 8), num_classes, (8, 32), depthwise=False, class_width=8)
        small, large = self.head.one_to_one_box_branches
        with torch.no_grad():
            small[2].bias.view(4, -1)[:, :2] = 20  # each side is half a cell away
            large[2].bias.view(4, -1)[:, -1] = 20  # each side is 15 cells away
            for classes in self.head.one_to_one_class_branches:
                classes[2].bias.zero_()
