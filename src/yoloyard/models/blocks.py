"""The building blocks of the families, without attention.

Shapes: B batch, h w cells of a feature map, n repeats.

Every block maps (B, in_channels, h, w) to (B, out_channels, h, w); only a strided `Conv` makes the map smaller. The
activation is a constructor argument of each block, a function that makes a module: `activation=nn.Hardswish`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

Activation = Callable[[], nn.Module]
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")  # of torch's modules


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Does `module` compute just what its class, one of `kinds`, says? Not with hooks or weights made by a function."""
    return type(module) in kinds and not any(getattr(module, hooks) for hooks in HOOKS)


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, activation: (B, in, h, w) to (B, out, h / stride, w / stride).

    Padding is kernel // 2 unless given, so that stride 1 keeps the size. `groups=in_channels` makes it depthwise.
    Source: Ioffe and Szegedy, "Batch Normalization" (2015); eps and momentum are the families' published values.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two convolutions through `hidden` channels, the second one 3x3, the first one 3x3 or `first_kernel` wide.

    The input is added where `shortcut` is on and the widths agree. Source: He et al., "Deep Residual Learning" (2015),
    with two convolutions as in Darknet-53 (YOLOv3, 2018).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        shortcut: bool = True,
        first_kernel: int = 3,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, hidden, first_kernel, activation=activation)
        self.conv2 = Conv(hidden, out_channels, 3, activation=activation)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.add else y


class SplitStack(nn.Module):
    """What C2f and C3k2 share: half of the channels go through a chain of blocks, and every stage's result is kept.

    A 1x1 convolution makes 2 * `hidden` channels, which are split in two; `blocks` (hidden to hidden) run one after
    the other on the second half; both halves and all n results, (2 + n) * hidden channels, are joined by a 1x1
    convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, blocks: Sequence[nn.Module], activation: Activation
    ) -> None:
        super().__init__()
        self.conv_in = Conv(in_channels, 2 * hidden, activation=activation)
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = Conv((2 + len(blocks)) * hidden, out_channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv_in(x).chunk(2, dim=1)
        # Of a slice a convolution copies what it needs anyway, and the backward pass would keep the whole.
        results = [first, second.clone()]
        for block in self.blocks:
            results.append(block(results[-1]))
        return self.conv_out(torch.cat(results, dim=1))


class C2f(SplitStack):
    """The stage of YOLOv8: a split stack of n bottlenecks that keep their full width.

    Source: YOLOv8 (2023); the idea is that of CSPNet (Wang et al., 2019) and ELAN (Wang et al., 2022).
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, shortcut: bool, activation: Activation = nn.SiLU
    ) -> None:
        hidden = out_channels // 2
        blocks = [Bottleneck(hidden, hidden, hidden, shortcut, activation=activation) for _ in range(repeats)]
        super().__init__(in_channels, out_channels, hidden, blocks, activation)


class TwoBranches(nn.Module):
    """What C3 and its like share: two 1x1 branches of `hidden` channels, one with blocks behind it, joined by a 1x1.

    `make_blocks` makes them, for so many channels. Source: Wang et al., "CSPNet" (2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        make_blocks: Callable[[int], nn.Module],
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.conv_in = Conv(in_channels, hidden, activation=activation)
        self.conv_skip = Conv(in_channels, hidden, activation=activation)
        self.blocks = make_blocks(hidden)
        self.conv_out = Conv(2 * hidden, out_channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(torch.cat((self.blocks(self.conv_in(x)), self.conv_skip(x)), dim=1))


class C3(TwoBranches):
    """Two branches of half the width, one of n bottlenecks.

    The stage of YOLOv5, whose bottlenecks begin with a 1x1 convolution. Source: Wang et al., "CSPNet" (2019);
    YOLOv5 (2020).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int,
        shortcut: bool,
        first_kernel: int = 1,
        activation: Activation = nn.SiLU,
    ) -> None:
        def bottlenecks(width: int) -> nn.Module:
            blocks = (Bottleneck(width, width, width, shortcut, first_kernel, activation) for _ in range(repeats))
            return nn.Sequential(*blocks)

        super().__init__(in_channels, out_channels, out_channels // 2, bottlenecks, activation)


class C3k(C3):
    """A `C3` of two bottlenecks with 3x3 convolutions. Source: YOLO11 (2024)."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation = nn.SiLU) -> None:
        super().__init__(in_channels, out_channels, 2, shortcut=True, first_kernel=3, activation=activation)


class C3k2(SplitStack):
    """The stage of YOLO11: a split stack of n `C3k` (c3k on) or of n bottlenecks of half the width (c3k off).

    `expansion` is the width of the stack as a fraction of `out_channels`. Source: YOLO11 (2024).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int,
        c3k: bool,
        expansion: float = 0.5,
        activation: Activation = nn.SiLU,
    ) -> None:
        hidden = int(out_channels * expansion)
        make = partial(C3k, hidden, hidden) if c3k else partial(Bottleneck, hidden, hidden, hidden // 2)
        blocks = [make(activation=activation) for _ in range(repeats)]
        super().__init__(in_channels, out_channels, hidden, blocks, activation)


class SPPF(nn.Module):
    """Spatial pyramid pooling, fast: three 5x5 max-poolings in a chain see 5, 9 and 13 cells around each cell.

    `activate_in=False` leaves out the first convolution's activation, as YOLO26 and some files of other projects have
    it. With `add` the input is added to the result. Source: He et al., "Spatial Pyramid Pooling" (2014); the chained
    form is YOLOv5's (2021), the addition YOLO26's (2026).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activate_in: bool = True,
        add: bool = False,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.add = add
        hidden = in_channels // 2
        self.conv_in = Conv(in_channels, hidden, activation=activation if activate_in else nn.Identity)
        self.conv_out = Conv(4 * hidden, out_channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        results = [self.conv_in(x)]
        for _ in range(3):
            results.append(max_pool2d(results[-1], kernel_size=5, stride=1, padding=2))
        pooled = self.conv_out(torch.cat(results, dim=1))
        return x + pooled if self.add else pooled
