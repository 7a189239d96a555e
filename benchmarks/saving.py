"""What a save costs the training loop: the copy to host memory, for which it waits, and the writing beside it.

    python benchmarks/saving.py yolo11n yolo11x

"Before": until now the loop waited for both. Prints medians of five saves, and the longest copy.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from yoloyard.common.device import Precision
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.models import registry
from yoloyard.training.engine.engine import Engine
from yoloyard.training.state.checkpoint import Progress, snapshot_of, write
from yoloyard.training.state.randomness import RandomNumbers

SAVES = 5
CPU = torch.device("cpu")


def engine_of(model: str) -> Engine:
    """An engine whose optimizer has its state, as after a first update."""
    detector = registry.build(model, num_classes=80)
    config = TrainConfig(optimization=OptimizerConfig(optimizer="SGD"))
    criterion, gains = build_criterion(detector.head, config)
    engine = Engine(detector, criterion, gains, Precision("cpu", torch.float32), config, 100)
    for parameter in detector.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    engine.update()
    return engine


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(model: str) -> str:
    """The figures of a model in a line."""
    engine, copies, writes, snapshot = engine_of(model), [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"

        def copy() -> None:
            nonlocal snapshot
            engine.settle()
            snapshot = snapshot_of({}, engine, Progress(), [RandomNumbers(CPU).state_dict()])

        for _ in range(SAVES):
            copies.append(seconds(copy))
            writes.append(seconds(lambda: write(snapshot, last)))
        size = sum(file.stat().st_size for file in last.iterdir()) / 1e6
    copied, written = statistics.median(copies), statistics.median(writes)
    waits = f"the loop waits {copied:.3f} s (at most {max(copies):.3f}), before {copied + written:.3f} s"
    return f"{model}: {size:.0f} MB; {waits}"


if __name__ == "__main__":
    for name in sys.argv[1:] or ["yolo11n", "yolo11x"]:
        print(measure(name))
