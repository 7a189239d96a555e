"""YOLOv13: the hypergraph convolution by the paper's formula, dropout, gates and separable convolutions."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

from yoloyard.models import registry
from yoloyard.models.attention import A2C2f
from yoloyard.models.hypergraph import AdaptiveHypergraph, Halved
from yoloyard.models.separable import SeparableConv

CHANNELS, HYPEREDGES = 32, 3  # two heads


def exact_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def hypergraph() -> AdaptiveHypergraph:
    torch.manual_seed(0)
    module = AdaptiveHypergraph(CHANNELS, HYPEREDGES).eval()
    with torch.no_grad():
        module.prototypes.mul_(5)  # so that the shares are far from even
    return module


def by_heads(module: AdaptiveHypergraph, image: Tensor) -> Tensor:
    """One image (C, h, w) by the paper: participation of each head, their mean, gathering and spreading."""
    state = module.state_dict()

    def layer(name: str, x: Tensor) -> Tensor:
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    vertices = image.flatten(1).T
    context = torch.cat((vertices.mean(0), vertices.max(0).values))
    prototypes = state["prototypes"] + layer("context", context).reshape(HYPEREDGES, CHANNELS)
    queries = layer("queries", vertices)
    heads = [slice(first, first + 16) for first in range(0, CHANNELS, 16)]
    participation = torch.stack([queries[:, head] @ prototypes[:, head].T / 4 for head in heads]).mean(0)
    shares = participation.exp() / participation.exp().sum(0, keepdim=True)  # of each hyperedge: 1 over the image
    edges = exact_gelu(layer("to_edges", shares.T @ vertices))
    return (vertices + exact_gelu(layer("to_vertices", shares @ edges))).T.reshape(image.shape)


def test_the_convolution_is_the_papers_for_each_image_of_a_batch() -> None:
    module, images = hypergraph(), torch.randn(2, CHANNELS, 3, 5)
    with torch.no_grad():
        found = module(images)
        expected = torch.stack([by_heads(module, image) for image in images])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_training_drops_participation_at_random_and_evaluation_does_not() -> None:
    module, images = hypergraph(), torch.randn(1, CHANNELS, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(images), module(images))
        module.train()
        assert not torch.equal(module(images), module(images))
        logits = torch.ones(100, 100)
        dropped = module.dropout(logits)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert dropped.max() == pytest.approx(1 / 0.9)


def test_large_numbers_stay_finite_in_float16() -> None:
    module = AdaptiveHypergraph(128, 4).half()
    with torch.no_grad():
        module.queries.bias.fill_(150)
        module.prototypes.fill_(20)  # a product of 128 * 150 * 20, more than float16 holds
        assert module(torch.rand(1, 128, 4, 4).half()).isfinite().all()


def test_a_separable_convolution_has_nothing_between_its_two() -> None:
    torch.manual_seed(0)
    module, x = SeparableConv(4, 6, 7, stride=2).eval(), torch.randn(1, 4, 10, 12)
    state = module.state_dict()
    with torch.no_grad():
        wide = conv2d(x, state["depthwise.weight"], stride=2, padding=3, groups=4)
        mixed = conv2d(wide, state["pointwise.conv.weight"]) / math.sqrt(
            1 + 1e-3
        )  # fresh statistics: mean 0, variance 1
        torch.testing.assert_close(module(x), silu(mixed))


def test_a_fresh_network_begins_without_its_hypergraph_and_learns_its_gates_first() -> None:
    torch.manual_seed(0)
    detector = registry.build("yolov13n", num_classes=3).eval()
    images = torch.rand(1, 3, 64, 64)
    maps = detector(images)
    sum(level.square().mean() for level in maps).backward()
    through_gates = ("neck.enhance.", "neck.coarser.", "neck.finer.")
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) != name.startswith(through_gates), name
    with torch.no_grad():
        for parameter in detector.get_submodule("neck.enhance").parameters():
            parameter.normal_()
        for level, expected in zip(detector(images), maps, strict=True):
            assert torch.equal(level, expected)
        for name, parameter in detector.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.1)
        for level, expected in zip(detector(images), maps, strict=True):
            assert not torch.allclose(level, expected)


def test_large_sizes_scale_their_attention_stages_and_only_pool_on_the_way_down() -> None:
    for size, is_large in (("n", False), ("l", True)):
        with torch.device("meta"):
            detector = registry.build(f"yolov13{size}", num_classes=3)
        stages = [module for module in detector.modules() if isinstance(module, A2C2f)]
        assert [stage.gamma is not None for stage in stages] == [is_large] * 2
        pooled = [module for module in detector.modules() if isinstance(module, Halved)]
        assert [any(True for _ in module.parameters()) for module in pooled] == [not is_large]
