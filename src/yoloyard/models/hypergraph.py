"""The blocks of YOLOv13: features of all levels meet in a hypergraph, and all levels get a share of the result.

Shapes: B batch, h w cells of a map, N = h * w cells as vertices, M hyperedges, c channels.

Source: Lei et al., "YOLOv13: Real-Time Object Detection with Hypergraph-Enhanced Adaptive Visual Perception" (2025,
arXiv 2506.17733): HyperACE is "Hypergraph-based Adaptive Correlation Enhancement", FullPAD "Full-Pipeline
Aggregation-and-Distribution".
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate

from yoloyard.models.blocks import Conv, TwoBranches
from yoloyard.models.separable import SeparableC3k

HEAD_WIDTH = 16  # channels of a head
DROPOUT = 0.1


class AdaptiveHypergraph(nn.Module):
    """(B, c, h, w) to the same shape: each hyperedge gathers from all cells, each cell from all hyperedges.

    How far a cell belongs to a hyperedge is computed for each image: by how alike the cell and the hyperedge's
    prototype are, of which a part follows from the image. In training a tenth of these numbers is dropped at random.
    """

    def __init__(self, channels: int, hyperedges: int) -> None:
        super().__init__()
        self.hyperedges = hyperedges
        self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hyperedges, channels)))
        self.context = nn.Linear(2 * channels, hyperedges * channels)
        self.queries = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(DROPOUT)
        self.to_edges = nn.Linear(channels, channels)
        self.to_vertices = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        vertices = x.flatten(2).transpose(1, 2)  # (B, N, c)
        context = torch.cat((vertices.mean(dim=1), vertices.amax(dim=1)), dim=1)
        prototypes = self.prototypes + self.context(context).unflatten(1, (self.hyperedges, -1))  # (B, M, c)
        # The mean over all heads of their products, each divided by the root of its width, is one product. The factor
        # comes first: in float16 the product itself could be too large.
        queries = self.queries(vertices) * (HEAD_WIDTH**0.5 / x.shape[1])
        logits = self.dropout(queries @ prototypes.transpose(1, 2))  # (B, N, M)
        shares = logits.softmax(dim=1, dtype=torch.float32).to(logits.dtype)  # of a hyperedge, over the image
        edges = gelu(self.to_edges(shares.transpose(1, 2) @ vertices))  # (B, M, c)
        vertices = vertices + gelu(self.to_vertices(shares @ edges))
        return vertices.transpose(1, 2).unflatten(2, x.shape[2:])


class HyperACE(nn.Module):
    """p3, p4 and p5 to one map of p4's size, for all levels: (B, out, h, w).

    A third of the channels passes by, one goes through two hypergraphs (relations of many cells), one through n
    separable C3k (what is near). `in_channels` are those of p3, p4 and p5.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, repeats: int, hyperedges: int) -> None:
        super().__init__()
        width, hidden = in_channels[1], out_channels // 2

        def hypergraph() -> nn.Module:
            return TwoBranches(hidden, hidden, hidden, lambda channels: AdaptiveHypergraph(channels, hyperedges))

        self.fuse = Conv(sum(in_channels), width)
        self.conv_in = Conv(width, 3 * hidden)
        self.branch1, self.branch2 = hypergraph(), hypergraph()
        self.blocks = nn.ModuleList(SeparableC3k(hidden, hidden // 2) for _ in range(repeats))
        self.conv_out = Conv((4 + repeats) * hidden, out_channels)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> Tensor:
        fused = self.fuse(torch.cat((avg_pool2d(p3, 2), p4, interpolate(p5, scale_factor=2.0)), dim=1))
        bypass, far, near = self.conv_in(fused).chunk(3, dim=1)
        far, results = far.clone(), [near.clone()]  # as in SplitStack
        for block in self.blocks:
            results.append(block(results[-1]))
        return self.conv_out(torch.cat((bypass, self.branch1(far), *results, self.branch2(far)), dim=1))


class Halved(nn.Module):
    """(B, in, h, w) to (B, out, h / 2, w / 2): average pooling, and a 1x1 convolution where the widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.widen = Conv(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(avg_pool2d(x, 2))


class Tunnel(nn.Module):
    """FullPAD's way of distribution: a map and a learned share of the enhanced one, at first none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, enhanced: Tensor) -> Tensor:
        return x + self.gate * enhanced
