"""What 1, 8, 64 and 512 GPUs would make of a training with DDP: a model with stated assumptions, nothing measured.

    python benchmarks/scaling_model.py

A step is forward, backward, exchange of gradients and update. The exchange of a bucket of gradients begins when the
backward pass has computed it and the bucket before has been exchanged; what goes on after the backward pass is time
lost, and so is the exchange of the loss's norms before it. The backward pass is taken to compute gradients evenly. Left
out: processes that wait for the slowest one, the loss, the update, validation and saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from yoloyard.config.settings import OptimizerConfig
from yoloyard.models import registry
from yoloyard.models.profile import profile

# NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s dense bfloat16, 3.35 TB/s memory, 900 GB/s NVLink in both directions.
FLOPS_PER_SECOND = 989e12 * 0.5  # assumed: half is reached; 0.42 to 0.48 were reached on a CPU (docs/performance.md)
MEMORY_BYTES_PER_SECOND = 3.35e12 * 0.8  # assumed: 0.8 is reached
NVLINK_BYTES_PER_SECOND = 450e9 * 0.8  # in one direction; assumed: 0.8 is reached
LAUNCH_SECONDS = 6e-6  # assumed: what Python and torch need to launch one operation
LINK_SECONDS = 3e-6  # assumed: latency of one step of a ring inside a host
NETWORK_SECONDS = 20e-6  # assumed: the same between hosts
GPUS_IN_A_HOST = 8
# A convolution with BatchNorm and SiLU keeps two maps for the backward pass and moves 7 maps forward (written by the
# convolution, read for the statistics and to be normalised, written, read and written by SiLU, read by the next one)
# and 12 backward (SiLU 3, BatchNorm 5, convolution 4).
MOVED_FOR_A_KEPT_BYTE = (7 + 12) / 2
BYTES_OF_A_VALUE = 2  # maps in bfloat16
FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20  # torch's DistributedDataParallel
# Samples of one core a second, docs/performance.md, "Training samples": decoded each time, and with `--cache disk`.
SAMPLES_OF_A_CORE = (88.7, 218.0)
NOMINAL_BATCH = OptimizerConfig().nbs  # images of an update in the published recipes
NETWORKS = (  # bytes a second that a host sends to others; bytes of a gradient's value on the network
    ("8 x 400 Gb/s", 400e9, 4),
    ("25 Gb/s", 25e9 / 8, 4),
    ("25 Gb/s, bfloat16", 25e9 / 8, 2),
)


@dataclass(frozen=True)
class Work:
    """What a network asks for."""

    parameters: int
    flops: float  # of the forward pass of an image
    kept_bytes: float  # maps of an image that the backward pass needs
    operations: int  # that a forward pass launches

    def seconds(self, images: int) -> float:
        """Of a forward and a backward pass on one GPU, which takes twice as long as the forward."""
        moved = self.kept_bytes * MOVED_FOR_A_KEPT_BYTE / MEMORY_BYTES_PER_SECOND
        return max(images * (3 * self.flops / FLOPS_PER_SECOND + moved), 3 * self.operations * LAUNCH_SECONDS)


class _Operations(TorchDispatchMode):
    """Counts the operations that are called inside, views included."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def work_of(model: str, imgsz: int = 640) -> Work:
    """What the named model asks for at imgsz pixels, traced on the meta device."""
    detector = registry.build(model, num_classes=80).to("meta").train()
    ours = {tensor.untyped_storage()._cdata for tensor in detector.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    operations = _Operations()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), operations:
        detector(torch.zeros(1, 3, imgsz, imgsz, device="meta"))
    values = sum(
        tensor.untyped_storage().nbytes() // tensor.element_size() for key, tensor in kept.items() if key not in ours
    )
    cost = profile(detector, imgsz)
    return Work(cost.parameters, cost.flops + cost.attention_flops, values * BYTES_OF_A_VALUE, operations.count)


def buckets(gradient_bytes: float) -> list[float]:
    """Bytes of each bucket that is exchanged, in order."""
    first = min(gradient_bytes, FIRST_BUCKET_BYTES)
    full, rest = divmod(gradient_bytes - first, BUCKET_BYTES)
    return [first, *[float(BUCKET_BYTES)] * int(full), *([rest] if rest else [])]


def exchange_seconds(size: float, gpus: int, network: float) -> float:
    """Of an all-reduce of `size` bytes by rings: inside each host, then between hosts (`network`: bytes a second).

    n members of a ring send 2 (n - 1) times an n-th of the bytes each.
    """
    inside, hosts = min(gpus, GPUS_IN_A_HOST), max(1, gpus // GPUS_IN_A_HOST)
    in_hosts = 2 * (inside - 1) * (size / inside / NVLINK_BYTES_PER_SECOND + LINK_SECONDS)
    return in_hosts + 2 * (hosts - 1) * (size / hosts / network + NETWORK_SECONDS)


def step_seconds(work: Work, images: int, gpus: int, network: float, gradient_bytes: int = 4) -> float:
    """Of one step with `images` on each of `gpus`; `gradient_bytes`: of one value of a gradient on the network."""
    compute, norms = work.seconds(images), exchange_seconds(0, gpus, network)
    sizes = buckets(4.0 * work.parameters)
    done, end = 0.0, 0.0
    for size in sizes:
        done += size
        ready = compute / 3 + norms + compute * 2 / 3 * done / sum(sizes)
        end = max(end, ready) + exchange_seconds(size * gradient_bytes / 4, gpus, network)
    return max(norms + compute, end)


def rows(work: Work) -> Iterator[list[str]]:
    """Rows of the table: 16 images for each GPU, then the batch of the published recipes shared by all GPUs.

    Efficiency: images a second, compared with as many GPUs that each do what the one GPU of the same part does.
    """
    for shared in (0, NOMINAL_BATCH):
        single = shared or 16
        for gpus in (1, 8, 64, 512):
            images = shared // gpus if shared else single
            if not images:
                yield [str(gpus), "-", f"{shared}", "fewer images than GPUs: refused"]
                continue
            batch, compute = gpus * images, work.seconds(images)
            row = [str(gpus), str(images), f"{batch}" + " *" * (batch > NOMINAL_BATCH), f"{compute * 1e3:.1f}"]
            for _, network, gradient_bytes in NETWORKS:
                throughput = batch / step_seconds(work, images, gpus, network, gradient_bytes)
                efficiency = throughput / gpus / (single / work.seconds(single))
                row.append(f"{float(f'{throughput:.2g}'):,.0f} ({efficiency:.2f})")
            yield [*row, " / ".join(str(math.ceil(images / compute / samples)) for samples in SAMPLES_OF_A_CORE)]


def main() -> None:
    head = ["GPUs", "images each", "batch", "compute, ms", *(name for name, *_ in NETWORKS), "cores for each GPU"]
    for model in ("yolo11n", "yolo11x"):
        work = work_of(model)
        print(f"\n{model} at 640 pixels, MODELLED: images a second (efficiency); {4 * work.parameters / 1e6:.1f} MB of")
        print(f"gradients, {work.kept_bytes / 1e9:.2f} GB of maps for an image, {work.operations} operations forward\n")
        for row in (head, ["---:"] * len(head), *rows(work)):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
