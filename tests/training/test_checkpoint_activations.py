"""`--checkpoint-activations`: less is kept for the backward pass, and every number stays the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from memory import SavedBytes
from tiny_network import Tiny
from yoloyard import cpu
from yoloyard.common.device import Precision
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.training.engine.checkpointing import checkpoint_activations


class Dropping(Tiny):
    """With random numbers in one of its blocks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.fine = nn.Sequential(self.fine, nn.Dropout(0.5))  # type: ignore[assignment]


def after_backward(detector: Detector, dtype: torch.dtype, joined: bool, checkpointed: bool) -> dict[str, Tensor]:
    """All buffers and gradients after two forwards and backwards."""
    detector, precision = copy.deepcopy(detector).train(), Precision("cpu", dtype)
    if joined:
        cpu.prepare_training(detector, lambda *_: {}, precision, num_processes=1)
    if checkpointed:
        checkpoint_activations(detector)
    torch.manual_seed(1)
    for _ in range(2):
        with precision.autocast():
            maps = detector(torch.rand(2, 3, 64, 64))
        torch.stack([level.float().square().mean() for level in maps]).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in detector.named_parameters() if p.grad is not None}
    return {**dict(detector.named_buffers()), **gradients}


@pytest.mark.parametrize("joined", [True, False])  # the operations of a CPU, or those of all devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "model",
    [
        "yolo11n",
        "dropping",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolo12n", "yolov13n", "yolov5n")),
    ],
)
def test_gradients_and_buffers_are_the_same_to_the_last_bit(model: str, dtype: torch.dtype, joined: bool) -> None:
    torch.manual_seed(0)
    detector = Dropping(3) if model == "dropping" else registry.build(model, num_classes=3)
    expected = after_backward(detector, dtype, joined, checkpointed=False)
    found = after_backward(detector, dtype, joined, checkpointed=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_yolo11x_at_1280_pixels_keeps_less_than_a_fifth() -> None:
    sizes = []
    for checkpointed in (False, True):
        with torch.device("meta"):
            detector = registry.build("yolo11x", num_classes=80).train()
            images = torch.zeros(1, 3, 1280, 1280)
        if checkpointed:
            checkpoint_activations(detector)
        saved = SavedBytes(ignored=[*detector.parameters(), *detector.buffers()])
        with saved:
            detector(images)
        sizes.append(saved.bytes)
    assert sizes[1] < 0.2 * sizes[0]


def test_a_copy_computes_with_its_own_weights_and_evaluation_keeps_everything_as_it_was() -> None:
    detector = Tiny(3)
    checkpoint_activations(detector)
    other = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    images = torch.rand(1, 3, 64, 64)
    assert all(level.abs().sum() > 0 for level in detector.train()(images))
    assert all(level.abs().sum() == 0 for level in other.train()(images))
    saved = SavedBytes(ignored=[*detector.parameters(), *detector.buffers()])
    with saved, torch.no_grad():
        detector.eval()(images)
    assert saved.bytes == 0


@pytest.mark.slow
def test_a_compiled_network_has_the_same_gradients_and_buffers() -> None:
    found = []
    for checkpointed in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        detector = Tiny(3).train()
        if checkpointed:
            checkpoint_activations(detector)
        network = torch.compile(detector, fullgraph=True, dynamic=False)
        torch.stack([level.square().mean() for level in network(torch.rand(2, 3, 64, 64))]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
        found.append(gradients | dict(detector.named_buffers()))
    for name, value in found[0].items():
        assert value is found[1][name] is None or torch.equal(found[1][name], value), name  # type: ignore[arg-type]
