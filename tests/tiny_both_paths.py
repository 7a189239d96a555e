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
        with torch.no_grad():
            for name, values in self.head.named_parameters():
                if name == "one_to_one_box_branches.0.2.bias":
                    values.view(4, -1)[:, :2] = 20  # each side is half a cell away
                elif name == "one_to_one_box_branches.1.2.bias":
                    values.view(4, -1)[:, -1] = 20  # each side is 15 cells away
                elif name.startswith("one_to_one_class") and name.endswith(".2.bias"):
                    values.zero_()
