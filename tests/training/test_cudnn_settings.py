"""What a training asks of cuDNN, and what the line that names the precision says of TF32."""

from __future__ import annotations

import pytest
import torch

from yoloyard.common.device import Precision, precision_text, repeated_shapes
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.training.engine.compilation import shapes_vary

FLOAT32 = Precision("cuda", torch.float32)
GPU, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first number of the GPU's capability, which may be changed."""
    number = [8]
    asked = {GPU: number}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (asked[device][0], 0))
    return number


def test_float32_on_a_gpu_says_that_convolutions_round(capability: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_text(FLOAT32, GPU) == "float32 (convolutions in TF32)"
    with monkeypatch.context() as changes:
        changes.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert precision_text(FLOAT32, GPU) == "float32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert precision_text(FLOAT32, GPU) == "float32"


def test_what_does_not_round_is_named_alone(capability: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_text(Precision("cuda", torch.bfloat16), GPU) == "bfloat16"
    assert precision_text(Precision("cpu", torch.float32), CPU) == "float32"
    assert precision_text(Precision("mps", torch.float32), torch.device("mps")) == "float32"
    capability[0] = 7  # Turing has no TF32
    assert precision_text(FLOAT32, GPU) == "float32"
    capability[0] = 9
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert precision_text(FLOAT32, GPU) == "float32"


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("words", "searches"),
    [({}, True), ({"rect": True}, False), ({"multi_scale": True}, False), ({"rect": True, "multi_scale": True}, False)],
)
def test_cudnn_searches_where_shapes_repeat_and_nowhere_else(
    words: dict[str, bool], searches: bool, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with repeated_shapes(not shapes_vary(with_overrides(TrainConfig(), words))):
        assert torch.backends.cudnn.benchmark is searches
    assert torch.backends.cudnn.benchmark is before
    with pytest.raises(KeyError), repeated_shapes():
        raise KeyError
    assert torch.backends.cudnn.benchmark is before
