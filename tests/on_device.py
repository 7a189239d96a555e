"""Training steps on any device, and what must be true of them; for tests, and for benchmarks/gpu.py.

It needs no package of the command line or of the tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from launches import Launches
from tiny_network import Tiny
from yoloyard.common.device import Precision, free_bytes
from yoloyard.common.log import shown_lines
from yoloyard.common.structures import Batch
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads import EndToEndHead
from yoloyard.training.engine.compilation import compile_network
from yoloyard.training.engine.engine import Engine, StepReport, Verdict
from yoloyard.training.strategies.alone import Strategy

NUM_CLASSES = 3
SGD = OptimizerConfig(optimizer="SGD", momentum=0.9)
ADAMW = OptimizerConfig(optimizer="AdamW", momentum=0.9)


def build(model: str, num_classes: int = NUM_CLASSES) -> Detector:
    """The detector of this name; `tiny`, or with both paths `tiny both`, is that of the tests."""
    if model.startswith("tiny"):
        return Tiny(num_classes, EndToEndHead, bins=1) if model == "tiny both" else Tiny(num_classes)
    return registry.build(model, num_classes=num_classes)


class Training:
    """A detector on a device with all that a step needs. `lines`: what compiling has said.

    An update comes every `accumulate` batches of two images, unless there is a `config`.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        model: str = "yolo11n",
        optimization: OptimizerConfig = SGD,
        compiled_for: tuple[int, int, int, int] | None = None,
        num_classes: int = NUM_CLASSES,
        accumulate: int = 1,
        config: TrainConfig | None = None,
        batches_per_epoch: int = 10**6,
    ) -> None:
        torch.manual_seed(0)
        self.detector: Detector = build(model, num_classes).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        precision = Precision(device.type, dtype)
        if config is None:
            optimization = replace(optimization, nbs=2 * accumulate, warmup_epochs=0)
            config = TrainConfig(batch=2, optimization=optimization)
        criterion, gains = build_criterion(self.detector.head, config, free_bytes=free_bytes(device))
        self.lines: list[str] = []
        network: torch.nn.Module = self.detector.train()
        if compiled_for is not None:
            with shown_lines(self.lines.append):
                network = compile_network(self.detector, self.detector, compiled_for, precision)
        self.engine = Engine(
            self.detector,
            criterion,
            gains,
            precision,
            config,
            batches_per_epoch,
            Strategy(self.detector, network=network),
        )

    def backward(self, batch: Batch) -> Tensor:
        """The parts of the loss (parts,) of a batch that may lie elsewhere; its gradients are added up."""
        return self.engine.backward(batch.to(self.engine.device))[0]

    def step(self, batch: Batch) -> StepReport:
        """A whole step, as the trainer makes it."""
        return self.engine.step(batch)


def everything(engine: Engine) -> dict[str, Tensor]:
    """All that a step may change, as copies."""
    parts = {name: part for name, part in engine.state_dict().items() if name in ("model", "ema", "optimizer")}
    state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return {name: torch.as_tensor(value).clone() for name, value in state.items() if "num_batches_tracked" not in name}


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


def check_that_steps_wait_for_nothing(
    device: torch.device, dtype: torch.dtype, model: str = "yolo11n", steps: int = 6
) -> None:
    """From the batch's copy to the flags for the host; accumulation and loss scaling included. `steps`: even."""
    training = Training(device, dtype, model, accumulate=2)
    batches = [some_batch(seed=seed, pinned=device.type == "cuda") for seed in range(steps)]
    for batch in batches * 2:  # libraries get ready, memory is allocated, a loss scale is found
        training.step(batch).send().read()
    verdicts: list[Verdict] = []
    with no_waiting(device):
        for batch in batches:
            verdicts.append(training.step(batch).send())
    assert training.engine.last_update == training.engine.number - 1 == 3 * steps - 1
    assert all(verdict.read().losses_finite for verdict in verdicts)


def check_that_losses_are_those_of_the_cpu(device: torch.device, model: str = "yolo11n") -> None:
    """Two steps in float32 (no TF32) give the same losses, up to rounding and to ties that it decides."""
    cpu = torch.device("cpu")
    first, second = Training(cpu, model=model), Training(device, model=model)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for seed in range(2):
            batch = some_batch(seed=seed)
            expected, found = first.backward(batch), second.backward(batch).cpu()
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
            first.engine.update()
            second.engine.update()


def check_that_a_bad_step_leaves_no_trace(
    device: torch.device, dtype: torch.dtype, optimization: OptimizerConfig = SGD
) -> None:
    """An image's values become infinite inside: nothing changes, and the host hears of it."""
    training = Training(device, dtype, optimization=optimization)
    while training.step(some_batch(seed=1)).send().read().skipped:
        pass  # a loss scale is found
    before = everything(training.engine)
    first = next(module for module in training.detector.modules() if isinstance(module, torch.nn.Conv2d))
    spoiling = first.register_forward_hook(lambda module, inputs, output: output * float("inf"))
    report = training.step(some_batch(seed=2))
    spoiling.remove()
    assert report.send().read() == (True, False, False, False)
    after = everything(training.engine)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def check_that_compiling_changes_nothing(device: torch.device, dtype: torch.dtype) -> None:
    """The compiled network gives the losses of the plain one, up to rounding, and trying it has left no trace."""
    batch = some_batch()
    plain, compiled = Training(device, dtype), Training(device, dtype, compiled_for=(2, 3, 64, 64))
    assert len(compiled.lines) == 1
    assert "was compiled in" in compiled.lines[0], compiled.lines
    for name, value in everything(plain.engine).items():
        assert torch.equal(everything(compiled.engine)[name], value), name
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(compiled.backward(batch), plain.backward(batch), rtol=tolerance, atol=tolerance)
