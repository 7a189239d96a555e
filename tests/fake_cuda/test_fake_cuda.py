"""What a training asks of a CUDA device, traced with tensors without content: `make test-fake-cuda`.

A CUDA build of torch without a GPU makes tensors on "cuda:0" under FakeTensorMode, and refuses to mix them with those
of the CPU. Everything but the backward pass can be traced so: the engine wants a device there.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fake_devices import OneDevice, use_fakes
from launches import Launches
from on_device import some_batch
from yoloyard.common.device import Precision
from yoloyard.common.structures import Batch, ImageTransform, images_to_float
from yoloyard.config.settings import EvaluationConfig, OptimizerConfig, TrainConfig
from yoloyard.evaluation.validate import detect
from yoloyard.losses import build_criterion
from yoloyard.models import detector as detector_module
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.runtimes.network import Network
from yoloyard.training.engine.engine import Engine
from yoloyard.training.engine.multi_scale import resize
from yoloyard.training.strategies import alone
from yoloyard.training.strategies.placement import Placement

pytestmark = [
    pytest.mark.fake_cuda,
    pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch knows no CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the tests marked `gpu` say more"),
]
CUDA = torch.device("cuda:0")
FREE = int(23.5 * 2**30)  # bytes: of a card of 24 GB, the smallest on which 64 images of 640 pixels fit
MODELS = ["yolo11n", "yolo12n", "yolov13n", "yolov8n", "yolov5n"]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without content; autocast, scaler and events as where there is a GPU."""
    mode = FakeTensorMode()  # imports what makes a subclass of Event
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    for module in (torch, torch.cuda):
        monkeypatch.setattr(module, "Event", lambda *_, **__: SimpleNamespace(record=lambda *_: None))
    with mode:
        yield mode


def on_cuda(model: str = "yolo11n") -> Detector:
    detector = registry.build(model, num_classes=80)
    for module in detector.modules():
        for name, value in module.named_parameters(recurse=False):
            place = torch.empty(value.shape, device=CUDA)
            setattr(module, name, nn.Parameter(place, requires_grad=value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA))
    return detector


def forward(detector: Detector, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    with Precision("cuda", dtype).autocast():
        maps: list[Tensor] = detector(images_to_float(batch.images))
    assert all(level.device == CUDA and level.dtype == dtype for level in maps)
    return maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_copy_forward_and_loss_read_nothing(model: str, dtype: torch.dtype) -> None:
    detector = on_cuda(model).train()
    criterion, gains = build_criterion(detector.head, TrainConfig(), free_bytes=FREE)
    with Launches(forbid_reads=True):
        batch = resize(some_batch(size=128, boxes=20).to(CUDA), 1.5, 32)
        parts = criterion(forward(detector, batch, dtype), batch.boxes, batch.labels)
    assert parts.keys() == gains.keys()
    assert all(value.device == CUDA for pair in parts.values() for value in pair)


@pytest.mark.parametrize(("model", "most"), [("yolo11n", 150), ("yolov5n", 600)])
def test_launches_of_the_loss(model: str, most: int) -> None:
    detector = on_cuda(model).train()
    criterion, _ = build_criterion(detector.head, TrainConfig(), free_bytes=FREE)
    batch = some_batch(images=64, size=640, boxes=256).to(CUDA)
    maps = forward(detector, batch, torch.bfloat16)
    criterion(maps, batch.boxes, batch.labels)  # what is made once a shape
    with Launches(forbid_reads=True) as launches:
        criterion(maps, batch.boxes, batch.labels)
    assert len(launches.names) <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_update_and_its_flags_read_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients are made up, since the backward pass can't be traced; nor can torch's fused SGD."""
    monkeypatch.setattr(alone, "copy", SimpleNamespace(deepcopy=lambda _: on_cuda()))
    detector = on_cuda().train()
    config = TrainConfig(imgsz=64, optimization=OptimizerConfig(optimizer="AdamW", momentum=0.9))
    criterion, gains = build_criterion(detector.head, config, free_bytes=FREE)
    engine = Engine(detector, criterion, gains, Precision("cuda", dtype), config, 10)
    assert engine.scaler.is_enabled() == (dtype == torch.float16)
    losses, stop = torch.ones(3, device=CUDA), torch.zeros(2, device=CUDA)
    monkeypatch.setattr(engine, "backward", lambda batch: (losses, stop))
    batch = some_batch()
    monkeypatch.setattr(engine.schedule.__class__, "accumulate_at", lambda schedule, number: 1)
    for _ in range(2):
        engine.scaler.scale(torch.ones((), device=CUDA))
        for parameter in detector.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        with Launches(forbid_reads=True):
            report = engine.step(batch)
            verdict = report.send()
        assert report.gradient_norm.device == report.found_inf.device == CUDA
        assert verdict.values.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_placed_model_never_mixes_devices(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, fake: Any) -> None:
    """Forward, loss and update on two devices; the gradients are made up."""
    use_fakes(monkeypatch, fake)
    detector, other = on_cuda().train(), torch.device("cuda:1")
    config = TrainConfig(imgsz=64, optimization=OptimizerConfig(optimizer="AdamW", momentum=0.9))
    criterion, gains = build_criterion(detector.head, config, free_bytes=FREE)
    strategy = Placement(detector, [CUDA, other])
    engine = Engine(detector, criterion, gains, Precision("cuda", dtype), config, 10, strategy)
    batch = some_batch(size=128, boxes=20).to(CUDA)
    with OneDevice(), Launches(forbid_reads=True):
        parts = criterion(forward(detector, batch, dtype), batch.boxes, batch.labels)
    assert all(value.device == CUDA for pair in parts.values() for value in pair)
    engine.scaler.scale(torch.ones((), device=CUDA))
    for parameter in engine.parameters:
        parameter.grad = torch.empty_like(parameter)
    assert {parameter.device for parameter in engine.parameters} == {CUDA, other}
    with OneDevice(), Launches(forbid_reads=True):
        norm, found_inf = engine.update()
    assert norm.device == found_inf.device == CUDA


class Answers(TorchDispatchMode):
    """Answers what the host reads, as if `found` candidates had been found; notes the questions."""

    def __init__(self, found: int) -> None:
        super().__init__()
        self.found, self.reads = found, []  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        answer: Any = None
        if packet is torch.ops.aten.nonzero:
            answer = torch.empty((self.found, args[0].dim()), dtype=torch.int64, device=args[0].device)
        elif packet is torch.ops.aten.nonzero_numpy:  # nonzero(as_tuple=True)
            answer = [torch.empty(self.found, dtype=torch.int64, device=CUDA) for _ in range(args[0].dim())]
        elif packet is torch.ops.aten.bincount:
            answer = torch.empty(args[2] if len(args) > 2 else kwargs["minlength"], dtype=torch.int64, device=CUDA)
        elif packet in (torch.ops.aten.item, torch.ops.aten._local_scalar_dense):
            answer = self.found // 2
        elif packet is torch.ops.aten.equal:
            answer = True
        elif packet in (torch.ops.aten.index, torch.ops.aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            indices = [
                None if index is None else torch.empty(self.found, dtype=torch.int64, device=CUDA) for index in args[1]
            ]
            answer = func(args[0], indices, *args[2:], **(kwargs or {}))
        if answer is None:
            return func(*args, **(kwargs or {}))
        self.reads.append(str(packet))
        return answer


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_validation_stays_on_the_device_until_its_detections_are_copied(
    model: str, multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suppression must know how many candidates there are, so reads are allowed here: a few a batch."""
    monkeypatch.setattr(detector_module, "copy", SimpleNamespace(deepcopy=lambda module: module))
    detector = on_cuda(model).eval().requires_grad_(False).fused()
    batch = some_batch(images=2, size=128).to(CUDA)
    with torch.no_grad():
        boxes, scores = detector.decode(forward(detector, batch, torch.bfloat16))
    assert boxes.device == scores.device == CUDA
    transforms = [ImageTransform(128, 128, 1.0, 1.0, 0.0, 0.0)] * 2
    with Answers(found=8) as answers:
        settings = EvaluationConfig()
        network = Network(detector, CUDA, Precision("cuda", torch.bfloat16))
        detections = detect(network, batch.images, transforms, settings, multi_label)
    assert len(detections) == 2
    assert all(found.boxes.device.type == found.scores.device.type == "cpu" for found in detections)
    assert set(answers.reads) <= {
        "aten.nonzero_numpy",
        "aten.nonzero",
        "aten.index",
        "aten.bincount",
        "aten.item",
        "aten.equal",
    }
    assert len(answers.reads) <= 16 + 2 * len(detections)


def test_tensors_of_cpu_and_device_do_not_mix_and_reads_are_refused() -> None:
    """What the tests above rely on."""
    on_device = torch.empty(3, device=CUDA)
    with pytest.raises(RuntimeError, match="device"):
        on_device + torch.empty(3)
    with pytest.raises(AssertionError, match="wait"), Launches(forbid_reads=True):
        on_device.sum().item()
    with pytest.raises(AssertionError, match="wait"), Launches(forbid_reads=True):
        on_device.to("cpu")
