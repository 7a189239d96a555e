"""`--strategy placement`: the blocks of a model on several devices, which train it as one device does."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from fake_devices import OneDevice, use_fakes
from on_device import SGD, everything, some_batch
from processes import run_together
from tiny_network import Tiny
from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.engine.engine import Engine
from yoloyard.training.run import num_processes
from yoloyard.training.setup.settings import check_new
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.placement import Placement, ends_of, kept_bytes

SLOW = ("yolo12n", "yolov13n", "yolov5n")
CPU, META = torch.device("cpu"), torch.device("meta")


def engine_on(devices: list[torch.device], model: str, dtype: torch.dtype, optimization: OptimizerConfig) -> Engine:
    """An engine with a placed model, or with a whole one on a single device."""
    torch.manual_seed(0)
    detector = Tiny(3) if model == "tiny" else registry.build(model, num_classes=3)
    detector.to(device=devices[0]).train()
    config = TrainConfig(batch=2, optimization=dataclasses.replace(optimization, nbs=2, warmup_epochs=0))
    criterion, gains = build_criterion(detector.head, config, free_bytes=None)
    strategy = Placement(detector, devices) if len(devices) > 1 else Strategy(detector)
    return Engine(detector, criterion, gains, Precision(devices[0].type, dtype), config, 10, strategy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", ["yolo11n", *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)])
def test_gradients_weights_and_average_are_those_of_one_device_to_the_last_bit(model: str, dtype: torch.dtype) -> None:
    states: list[Mapping[str, Tensor]] = []
    for devices in ([CPU], [CPU, CPU, CPU]):
        engine = engine_on(devices, model, dtype, SGD)
        engine.backward(some_batch(seed=1))
        gradients = {f"gradient of {name}": p.grad for name, p in engine.model.named_parameters() if p.grad is not None}
        states.append({name: value.clone() for name, value in gradients.items()})
        engine.update()
        states[-1] |= everything(engine)  # type: ignore[operator]
    expected, found = states
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_each_device_gets_an_even_share_of_the_maps() -> None:
    assert ends_of([4, 1, 1, 2], 2) == [1, 4]
    assert ends_of([1, 1, 1, 1, 1, 1], 3) == [2, 4, 6]
    assert ends_of([1, 9, 1], 3) == [1, 2, 3]
    for model in ("yolo11n", "yolov8n"):
        sizes = list(kept_bytes(registry.build(model, num_classes=80)).values())
        assert 0.4 < sum(sizes[: ends_of(sizes, 2)[0]]) / sum(sizes) < 0.6
    with pytest.raises(UsageError, match="4 blocks are too few for 9 devices; name fewer"):
        Placement(Tiny(3), [CPU] * 9)


def test_a_block_gets_its_arguments_where_its_weights_lie() -> None:
    """As far as that goes without a second device that computes: the maps of META have no content to be given back."""
    detector = registry.build("yolo11n", num_classes=3)
    Placement(detector, [CPU, META])
    first, *_ = detector.parameters()
    assert (first.device, detector.head.projection.device) == (CPU, META)
    seen: list[Any] = []
    detector.head.register_forward_hook(lambda module, inputs, maps: seen.extend([*inputs[0], *maps]))
    with pytest.raises(NotImplementedError, match="meta tensor"):
        detector(torch.zeros(2, 3, 64, 64))
    assert {tensor.device for tensor in seen} == {META}
    assert [tuple(tensor.shape[2:]) for tensor in seen] == [(8, 8), (4, 4), (2, 2)] * 2


def traced_steps(cases: list[tuple[str, int, torch.dtype]]) -> list[int]:
    """A whole step each with devices that only have names; how many copies of maps it makes.

    torch's frame for devices that are written in Python lets autograd take them for real ones.
    """

    class Twins(backend_registration._DummyBackendModule):
        device_count = staticmethod(lambda: 8)
        get_amp_supported_dtype = staticmethod(lambda: [torch.float16])

    backend_registration._setup_privateuseone_for_python_backend("twin", Twins())
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel)  # autocast chooses no types here
    optimization = OptimizerConfig(optimizer="AdamW", momentum=0.9)  # torch can't trace its fused SGD
    copies = []
    for model, count, dtype in cases:
        with pytest.MonkeyPatch.context() as patch, FakeTensorMode() as mode:
            use_fakes(patch, mode)
            devices = [torch.device("twin", number) for number in range(count)]
            engine = engine_on(devices, model, dtype, optimization)
            with OneDevice() as watched, torch.autograd.set_multithreading_enabled(False):
                report = engine.step(some_batch())
            assert {parameter.device for parameter in engine.parameters} == set(devices)
            assert not any(each.grad is not None for each in engine.parameters)
            assert {report.losses.device, report.found_inf.device, report.gradient_norm.device} == {devices[0]}
            report.send()
            copies.append(watched.copies)
    return copies


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch has no such frame"
)
def test_whole_steps_never_mix_devices_and_copy_no_map_twice() -> None:
    found = run_together(1, traced_steps, [("yolo11n", 2, torch.float32), ("yolov5n", 3, torch.float16)])[0]
    # What crosses between blocks, and three maps to the loss; each comes back as a gradient. Both are cut in the
    # backbone: the first one behind two of the levels that the neck wants, the second one before and behind them.
    assert found == [2 * (3 + 3), 2 * (4 + 3)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"device": "cpu"}, "wants two devices of a kind or more, such as 0,1, not cpu"),
        ({}, "not auto"),
        ({"device": "cpu,cpu", "processes": 2}, "is one process with several devices; here are 2"),
        ({"device": "cpu,cpu", "compile": True}, "does not go with --compile"),
        ({"device": "cpu,cpu", "sync_bn": True}, "sync-bn"),
        ({"device": "cpu,cpu", "batch": "auto"}, "say a number"),
        ({"device": "cpu,cpu", "compress_gradients": True}, "does not go with --compress-gradients"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides: dict[str, Any], message: str) -> None:
    given = {"data": "data.yaml", "strategy": "placement", **overrides}
    with pytest.raises(UsageError, match=message):
        check_new(with_overrides(TrainConfig(), given), given, CPU, num_processes(given, None))
