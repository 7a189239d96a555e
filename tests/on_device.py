"""Training steps on any device, and what must be true of them; for tests, and for benchmarks/gpu.py.

torch, NumPy and OpenCV are all that this needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from launches import Launches
from yoloyard.common.device import Precision, free_bytes
from yoloyard.common.log import shown_lines
from yoloyard.common.structures import Batch
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.training.engine.compilation import compile_network
from yoloyard.training.engine.ema import ExponentialMovingAverage
from yoloyard.training.engine.optimizer import build_optimizer
from yoloyard.training.engine.step import Outcome, Update, Verdict, forward_backward

NUM_CLASSES = 3
SGD = OptimizerConfig(optimizer="SGD", momentum=0.9)
ADAMW = OptimizerConfig(optimizer="AdamW", momentum=0.9)


class Training:
    """A detector on a device with all that a step needs. `lines`: what compiling has said."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        model: str = "yolo11n",
        optimization: OptimizerConfig = SGD,
        compiled_for: tuple[int, int, int, int] | None = None,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        torch.manual_seed(0)
        detector = registry.build(model, num_classes=num_classes)
        self.detector: Detector = detector.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.precision = device, Precision(device.type, dtype)
        self.optimizer = build_optimizer(self.detector, optimization, optimization.weight_decay)
        average = ExponentialMovingAverage(self.detector, optimization.ema_ramp)
        self.update = Update(self.detector, self.optimizer, self.precision.scaler(), average)
        self.criterion, self.gains = build_criterion(self.detector.head, TrainConfig(), free_bytes=free_bytes(device))
        self.lines: list[str] = []
        self.network: torch.nn.Module = self.detector.train()
        if compiled_for is not None:
            with shown_lines(self.lines.append):
                self.network = compile_network(self.detector, self.detector, compiled_for, self.precision)

    def backward(self, batch: Batch) -> Tensor:
        """The parts of the loss (parts,) of a batch that may lie elsewhere."""
        images, scaler = len(batch.image_ids), self.update.scaler
        batch = batch.to(self.device)
        return forward_backward(self.network, self.criterion, batch, self.gains, self.precision, scaler, images)

    def step(self, batch: Batch) -> Outcome:
        """A whole step, as the trainer makes it."""
        self.update.watch(self.backward(batch))
        return self.update()


def everything(update: Update) -> dict[str, Tensor]:
    """All that a step may change, as copies."""
    state = {f"model.{name}": value for name, value in update.model.state_dict().items()}
    state |= {f"ema.{name}": value for name, value in update.ema.model.state_dict().items()}
    for number, entry in update.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in entry.items()}
    state["updates"] = update.ema.updates
    return {name: value.clone() for name, value in state.items() if "num_batches_tracked" not in name}


def some_batch(images: int = 2, size: int = 64, boxes: int = 4, seed: int = 0, pinned: bool = False) -> Batch:
    """A batch of noise with boxes of many sizes, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, generator=generator)
    corners = torch.rand((images, boxes, 2), generator=generator) * 0.6 * size
    sides = (0.1 + 0.3 * torch.rand((images, boxes, 2), generator=generator)) * size
    batch = Batch(
        pixels.permute(0, 3, 1, 2),
        torch.cat((corners, corners + sides), dim=2),
        torch.randint(0, NUM_CLASSES, (images, boxes), generator=generator),
        torch.zeros(images, boxes, dtype=torch.bool),
        list(range(images)),
        [None] * images,
    )
    return batch.pin_memory() if pinned else batch


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Whatever makes the host wait for a CUDA device raises inside: the device says so, elsewhere the operations do."""
    if device.type != "cuda":
        with Launches(forbid_reads=True):
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def check_that_steps_wait_for_nothing(device: torch.device, dtype: torch.dtype, model: str = "yolo11n") -> None:
    """From the batch's copy to the flags for the host; accumulation and loss scaling included."""
    training = Training(device, dtype, model)
    batches = [some_batch(seed=seed, pinned=device.type == "cuda") for seed in range(6)]
    for batch in batches[:3]:  # libraries get ready, memory is allocated, a loss scale is found
        training.step(batch).send().read()
    verdicts: list[Verdict] = []
    with no_waiting(device):
        for batch in batches[3:]:
            training.update.watch(training.backward(batch))  # accumulated
            verdicts.append(training.step(batch).send())
    assert all(losses_finite for _, losses_finite in (verdict.read() for verdict in verdicts))


def check_that_losses_are_those_of_the_cpu(device: torch.device, model: str = "yolo11n") -> None:
    """Two steps in float32 (no TF32) give the same losses, up to rounding and to ties that it decides."""
    cpu = torch.device("cpu")
    first, second = Training(cpu, model=model), Training(device, model=model)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for seed in range(2):
            batch = some_batch(seed=seed)
            expected, found = first.backward(batch), second.backward(batch).cpu()
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
            first.update()
            second.update()


def check_that_a_bad_step_leaves_no_trace(
    device: torch.device, dtype: torch.dtype, optimization: OptimizerConfig = SGD
) -> None:
    """An image's values become infinite inside: nothing changes, and the host hears of it."""
    training = Training(device, dtype, optimization=optimization)
    while training.step(some_batch(seed=1)).send().read()[0]:
        pass  # a loss scale is found
    before = everything(training.update)
    first = next(module for module in training.detector.modules() if isinstance(module, torch.nn.Conv2d))
    spoiling = first.register_forward_hook(lambda module, inputs, output: output * float("inf"))
    outcome = training.step(some_batch(seed=2))
    spoiling.remove()
    assert outcome.send().read() == (True, False)
    after = everything(training.update)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def check_that_compiling_changes_nothing(device: torch.device, dtype: torch.dtype) -> None:
    """The compiled network gives the losses of the plain one, up to rounding, and trying it has left no trace."""
    batch = some_batch()
    plain, compiled = Training(device, dtype), Training(device, dtype, compiled_for=(2, 3, 64, 64))
    assert len(compiled.lines) == 1
    assert "was compiled in" in compiled.lines[0], compiled.lines
    for name, value in everything(plain.update).items():
        assert torch.equal(everything(compiled.update)[name], value), name
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(compiled.backward(batch), plain.backward(batch), rtol=tolerance, atol=tolerance)
