"""The blocks of YOLOv9: reparameterised convolutions in ELAN stages, downsampling behind a pooling, links of backbones.

Shapes: B batch, h w cells of a feature map. Blocks map (B, in_channels, h, w) to (B, out_channels, h, w), or to half
of h and w where they downsample; h and w are even there.

Sources: Wang et al., "YOLOv9: Learning What You Want to Learn Using Programmable Gradient Information" (2024) and the
MIT implementation of MultimediaTechLab.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from yoloyard.models.blocks import Conv, SplitStack, TwoBranches, is_plain


class RepConv(nn.Module):
    """A 3x3 and a 1x1 convolution of the same input, each normalised, added before the activation.

    Source: Ding et al., "RepVGG" (2021), without its identity branch.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, 3, activation=nn.Identity)
        self.conv2 = Conv(in_channels, out_channels, activation=nn.Identity)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv1(x) + self.conv2(x))

    def merged(self) -> nn.Module:
        """The same as one `Conv`, where both convolutions have absorbed their normalisations; else itself."""
        wide, narrow = self.conv1.conv, self.conv2.conv
        are_plain = is_plain(self, RepConv) and is_plain(self.conv1, Conv) and is_plain(self.conv2, Conv)
        are_folded = all(is_plain(part.bn, nn.Identity) for part in (self.conv1, self.conv2))
        if not are_plain or not are_folded or wide.bias is None or narrow.bias is None:
            return self
        wide.weight = nn.Parameter(wide.weight + pad(narrow.weight, (1, 1, 1, 1)), requires_grad=False)
        wide.bias = nn.Parameter(wide.bias + narrow.bias, requires_grad=False)
        self.conv1.activation = self.activation
        return self.conv1


class RepBottleneck(nn.Module):
    """A `RepConv` and a 3x3 convolution of full width, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = RepConv(channels, channels)
        self.conv2 = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class RepCSP(TwoBranches):
    """Two branches of half the width, one of n `RepBottleneck`; published as RepNCSP."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int) -> None:
        def bottlenecks(width: int) -> nn.Module:
            return nn.Sequential(*(RepBottleneck(width) for _ in range(repeats)))

        super().__init__(in_channels, out_channels, out_channels // 2, bottlenecks)


class ELAN(SplitStack):
    """A split stack of two 3x3 convolutions; `part` channels before the split. Source: Wang et al., "ELAN" (2022)."""

    def __init__(self, in_channels: int, out_channels: int, part: int) -> None:
        half = part // 2
        blocks = [Conv(half, half, 3) for _ in range(2)]
        super().__init__(in_channels, out_channels, half, blocks, nn.SiLU)


class RepELAN(SplitStack):
    """An ELAN whose two steps are a `RepCSP` of n bottlenecks and a 3x3 convolution; published as RepNCSPELAN."""

    def __init__(self, in_channels: int, out_channels: int, part: int, repeats: int) -> None:
        half = part // 2
        blocks = [nn.Sequential(RepCSP(half, half, repeats), Conv(half, half, 3)) for _ in range(2)]
        super().__init__(in_channels, out_channels, half, blocks, nn.SiLU)


def blurred(x: Tensor) -> Tensor:
    """The mean of each 2x2 cells, one row and one column fewer, (B, C, h - 1, w - 1)."""
    return avg_pool2d(x, 2, stride=1)


class AConv(nn.Module):
    """Blurs, then downsamples by a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(blurred(x))


class ADown(nn.Module):
    """Blurs, then downsamples one half of the channels by a 3x3 convolution, the other by the largest of 3x3 cells."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels // 2, out_channels // 2, 3, stride=2)
        self.conv2 = Conv(in_channels // 2, out_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = blurred(x).chunk(2, dim=1)
        return torch.cat((self.conv1(first), self.conv2(max_pool2d(second, 3, stride=2, padding=1))), dim=1)


class Links(nn.Module):
    """A 1x1 convolution whose channels are cut into maps of `widths`; published as CBLinear.

    Source: Liang et al., "CBNet" (2021): what one backbone hands to another.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.conv = nn.Conv2d(in_channels, sum(widths), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.widths, dim=1)


def with_links(x: Tensor, links: Sequence[Tensor]) -> Tensor:
    """`x` (B, C, h, w) and all `links`, of which each has half the h and w of the one before; published as CBFuse."""
    for level, link in enumerate(links):
        x = x + (interpolate(link, scale_factor=2.0**level) if level else link)
    return x
