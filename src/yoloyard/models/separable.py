"""Blocks of depthwise separable convolutions, the ones of YOLOv13. Shapes as in `blocks`.

Sources: Howard et al., "MobileNets" (2017); Lei et al., "YOLOv13" (2025), section "Model Lightweight with Depth-wise
Separable Convolution".
"""

from functools import partial

from torch import Tensor, nn

from yoloyard.models.blocks import Conv, SplitStack, TwoBranches


class SeparableConv(nn.Module):
    """A depthwise convolution and a 1x1 `Conv`, with nothing in between: (B, in, h, w) to (B, out, h, w) / stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=False
        )
        self.pointwise = Conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class SeparableBottleneck(nn.Module):
    """A 3x3 and a 7x7 separable convolution, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SeparableConv(channels, channels, 3)
        self.conv2 = SeparableConv(channels, channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class SeparableC3k(TwoBranches):
    """Two branches of `hidden` channels, one of two separable bottlenecks."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(
            channels, channels, hidden, lambda width: nn.Sequential(*(SeparableBottleneck(width) for _ in range(2)))
        )


class SeparableC3k2(SplitStack):
    """A split stack of n `SeparableC3k` of full width (c3k on) or of n separable bottlenecks (c3k off).

    `expansion` is the width of the stack as a fraction of `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, repeats: int, c3k: bool, expansion: float = 0.5) -> None:
        hidden = int(out_channels * expansion)
        make = partial(SeparableC3k, hidden, hidden) if c3k else partial(SeparableBottleneck, hidden)
        super().__init__(in_channels, out_channels, hidden, [make() for _ in range(repeats)], nn.SiLU)
