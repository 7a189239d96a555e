"""Blocks with attention, of YOLO11 and the families after it.

Shapes: B batch, h w cells of a feature map, N = h * w positions, d channels of one attention head. Every block maps
(B, in_channels, h, w) to (B, out_channels, h, w).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from yoloyard.models.blocks import Activation, Bottleneck, C3k, Conv, SplitStack

AttentionWithin = Callable[[int, int, int], nn.Module]  # of channels, heads and areas


class Attention(nn.Module):
    """Self-attention within `areas` horizontal bands of the map, with a depthwise convolution as position code.

    Queries and keys have `key_share` of the width of the values. The channels of `qkv` are head-major: the first head's
    query, key and value, then the second's. The position code is made of the values of the whole map. The number of
    positions must be a multiple of `areas`. Source: Vaswani et al., "Attention Is All You Need" (2017); YOLOv10
    (Wang et al., 2024), section 3.2 "partial self-attention".
    """

    def __init__(
        self, channels: int, heads: int, areas: int = 1, key_share: float = 0.5, position_kernel: int = 3
    ) -> None:
        super().__init__()
        self.heads, self.areas = heads, areas
        value_width = channels // heads
        key_width = int(value_width * key_share)
        self.widths = (key_width, key_width, value_width)
        self.qkv = Conv(channels, heads * sum(self.widths), activation=nn.Identity)
        self.position = Conv(channels, channels, position_kernel, groups=channels, activation=nn.Identity)
        self.project = Conv(channels, channels, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(1, (self.heads, -1)).split(self.widths, dim=2)
        return self.project(attend(queries, keys, values, self.areas) + self.position(values.flatten(1, 2)))


def attend(queries: Tensor, keys: Tensor, values: Tensor, areas: int) -> Tensor:
    """Attention of maps (B, heads, width, h, w) within `areas` horizontal bands: (B, heads * width of values, h, w)."""
    # (B * areas, heads, N / areas, width): a band is an image of its own, and a position a row
    bands = [
        each.flatten(3).unflatten(3, (areas, -1)).permute(0, 3, 1, 4, 2).flatten(0, 1)
        for each in (queries, keys, values)
    ]
    attended = scaled_dot_product_attention(*bands)
    whole = attended.unflatten(0, (-1, areas)).permute(0, 2, 4, 1, 3)  # (B, heads, width, areas, N / areas)
    return whole.reshape_as(values).flatten(1, 2)


class PSABlock(nn.Module):
    """`attention`, then two 1x1 convolutions through `expansion` times the width, each added to its input.

    Without `attention` it is one over the whole map with so many `heads`. Source: YOLOv10 (2024).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        activation: Activation = nn.SiLU,
        expansion: float = 2.0,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.attention = Attention(channels, heads) if attention is None else attention
        self.feed_forward = nn.Sequential(
            Conv(channels, hidden, activation=activation), Conv(hidden, channels, activation=nn.Identity)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.feed_forward(x)


class C2PSA(nn.Module):
    """Half of the channels go through n attention blocks, the other half pass by. Source: YOLO11 (2024).

    The attention heads are 64 channels wide.
    """

    def __init__(self, channels: int, repeats: int, activation: Activation = nn.SiLU) -> None:
        super().__init__()
        hidden = channels // 2
        heads = max(hidden // 64, 1)
        self.conv_in = Conv(channels, 2 * hidden, activation=activation)
        self.blocks = nn.Sequential(*(PSABlock(hidden, heads, activation) for _ in range(repeats)))
        self.conv_out = Conv(2 * hidden, channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        bypass, attended = self.conv_in(x).chunk(2, dim=1)
        return self.conv_out(torch.cat((bypass, self.blocks(attended)), dim=1))


class AttendedStack(SplitStack):
    """The deepest stage of YOLO26's neck: a split stack of a bottleneck with an attention block behind it.

    The attention heads are 64 channels wide. Source: YOLO26 (2026).
    """

    def __init__(self, in_channels: int, out_channels: int, activation: Activation = nn.SiLU) -> None:
        hidden = out_channels // 2
        bottleneck = Bottleneck(hidden, hidden, hidden // 2, activation=activation)
        attention = PSABlock(hidden, max(hidden // 64, 1), activation)
        super().__init__(in_channels, out_channels, hidden, [nn.Sequential(bottleneck, attention)], activation)


class AreaAttention(Attention):
    """Attention whose queries, keys and values are equally wide, with a 7x7 position code.

    Source: Tian et al., "YOLOv12: Attention-Centric Real-Time Object Detectors" (2025), section 3.2.
    """

    def __init__(self, channels: int, heads: int, areas: int) -> None:
        super().__init__(channels, heads, areas, key_share=1, position_kernel=7)


class SeparateAreaAttention(nn.Module):
    """Area attention whose queries and keys come from one convolution and the values from another; a 5x5 position code.

    The first half of `queries_keys` are the queries; in all three a head is a run of channels. Source: Lei et al.,
    "YOLOv13" (2025), which takes the stages of the original YOLOv12.
    """

    def __init__(self, channels: int, heads: int, areas: int) -> None:
        super().__init__()
        self.heads, self.areas = heads, areas
        self.queries_keys = Conv(channels, 2 * channels, activation=nn.Identity)
        self.values = Conv(channels, channels, activation=nn.Identity)
        self.position = Conv(channels, channels, 5, groups=channels, activation=nn.Identity)
        self.project = Conv(channels, channels, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.queries_keys(x).unflatten(1, (2, self.heads, -1)).unbind(1)
        values = self.values(x)
        attended = attend(queries, keys, values.unflatten(1, (self.heads, -1)), self.areas)
        return self.project(attended + self.position(values))


class AreaBlock(PSABlock):
    """A `PSABlock` with area attention, whose convolutions begin with small normal weights. Source: YOLOv12 (2025)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        areas: int,
        expansion: float,
        activation: Activation = nn.SiLU,
        attention: AttentionWithin = AreaAttention,
    ) -> None:
        super().__init__(channels, heads, activation, expansion, attention(channels, heads, areas))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


class A2C2f(nn.Module):
    """A chain of n stages whose every result is kept and joined by a 1x1 convolution: "R-ELAN". Source: YOLOv12 (2025).

    With `areas` each stage is two `AreaBlock` with heads of 32 channels, without it is a `C3k`. With `residual` the
    result is scaled channel by channel, at first by 0.01, and added to the input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int,
        areas: int | None = None,
        residual: bool = False,
        expansion: float = 2.0,
        activation: Activation = nn.SiLU,
        attention: AttentionWithin = AreaAttention,
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv_in = Conv(in_channels, hidden, activation=activation)

        def stage() -> nn.Module:
            if areas is None:
                return C3k(hidden, hidden, activation)
            size = (hidden, hidden // 32, areas, expansion)
            return nn.Sequential(*(AreaBlock(*size, activation, attention) for _ in range(2)))

        self.blocks = nn.ModuleList(stage() for _ in range(repeats))
        self.conv_out = Conv((1 + repeats) * hidden, out_channels, activation=activation)
        self.gamma = nn.Parameter(torch.full((out_channels,), 0.01)) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        results = [self.conv_in(x)]
        for block in self.blocks:
            results.append(block(results[-1]))
        joined = self.conv_out(torch.cat(results, dim=1))
        return joined if self.gamma is None else x + self.gamma.view(-1, 1, 1) * joined
