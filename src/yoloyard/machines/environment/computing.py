"""A program that computes on one device and compares with the CPU, or sums among processes, and prints lines of JSON.

    program DEVICE                        matrix product, convolution, precisions, a training step, memory
    program together BACKEND RANK SIZE    an all-reduce; MASTER_ADDR and MASTER_PORT say where to meet
    program peers COUNT                   which GPUs reach each other's memory, and whether copies arrive whole

It runs in any Python that has torch. A line is printed before each probe, so that a crash has a name.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import nn

# Largest error, relative to the largest value of the result, that rounding of that kind explains: inputs are rounded
# before both sides compute. TF32 rounds them once more, to 10 bits of mantissa.
TOLERANCES = {"float32": 1e-5, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 2e-2}
MATRIX_SIZE = 512


def attempt(probe: str, compute: Callable[[], dict[str, Any]]) -> None:
    """Print a line before the probe, and one with its result."""
    print(json.dumps({"probe": probe}), flush=True)  # noqa: T201
    try:
        facts = compute()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        facts = {"error": f"{type(error).__name__}: {error}"[:1500]}
    print(json.dumps({"probe": probe, "error": None, **facts}), flush=True)  # noqa: T201


def compare(device: torch.device, precision: str, compute: Callable[..., torch.Tensor], *shapes: Any) -> dict[str, Any]:
    """Compute on the device in `precision` and on the CPU in float64, from the same rounded inputs."""
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    wanted = compute(*(each.double() for each in inputs))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    found = compute(*(each.to(device) for each in inputs)).cpu().double()
    error = float((found - wanted).abs().max() / wanted.abs().max())
    return {"largest": error, "tolerance": TOLERANCES[precision]}


def convolve(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A convolution with its gradients, end to end in one tensor."""
    images, weights = images.detach().requires_grad_(), weights.detach().requires_grad_()
    result = nn.functional.conv2d(images, weights, padding=1)
    gradients = torch.autograd.grad(result.sum(), [images, weights])
    # The gradients are divided by what they sum over, or their size alone would decide.
    scale = [1.0, 1.0, 1.0 / images.shape[-1]]
    return torch.cat([(part * by).flatten() for part, by in zip((result.detach(), *gradients), scale, strict=True)])


def train(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Steps of a small network under autocast, with loss scaling in float16: the loss must fall and stay finite."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*layers, nn.Linear(8, 2)).to(device)
    images, wanted = torch.randn(8, 3, 32, 32).to(device), torch.tensor([0, 1] * 4, device=device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    losses = []
    for _ in range(20):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = nn.functional.cross_entropy(network(images).float(), wanted)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    return {"first": losses[0], "last": losses[-1]}


def on_device(name: str) -> None:
    device = torch.device(name)
    is_gpu = device.type == "cuda"

    def memory() -> dict[str, Any]:
        free, total = torch.cuda.mem_get_info(device) if is_gpu else (None, None)
        return {"free": free, "total": total}

    attempt("memory", memory)
    for precision in TOLERANCES if is_gpu else ("float32", "bfloat16"):
        attempt(f"matmul {precision}", partial(compare, device, precision, torch.matmul, *[(MATRIX_SIZE,) * 2] * 2))
        shapes = (4, 16, 64, 64), (32, 16, 3, 3)
        attempt(f"convolution {precision}", partial(compare, device, precision, convolve, *shapes))
    # GPUs that don't have it in hardware only emulate it, slowly.
    attempt("bfloat16", lambda: {"native": not is_gpu or torch.cuda.is_bf16_supported(including_emulation=False)})
    for precision in ("float32", "float16", "bfloat16") if is_gpu else ("float32", "bfloat16"):
        attempt(f"training {precision}", partial(train, device, getattr(torch, precision)))


def together(backend: str, rank: int, size: int) -> None:
    """Sum a vector over all processes; each counts one more than its rank."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)

    def reduce() -> dict[str, Any]:
        torch.distributed.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=60))
        values = torch.full((1 << 20,), float(rank + 1), device=device)
        torch.distributed.all_reduce(values)
        wrong = int((values != size * (size + 1) / 2).sum())
        torch.distributed.destroy_process_group()
        return {"wrong": wrong, "nccl": list(torch.cuda.nccl.version()) if backend == "nccl" else None}

    attempt("all-reduce", reduce)


def peers(count: int) -> None:
    def copy(source: int, target: int) -> dict[str, Any]:
        reaches = torch.cuda.can_device_access_peer(source, target)
        values = torch.arange(1 << 20, device=f"cuda:{source}")
        wrong = int((values.to(f"cuda:{target}").cpu() != values.cpu()).sum())
        return {"reaches": reaches, "wrong": wrong}

    for source, target in permutations(range(count), 2):
        attempt(f"{source} to {target}", partial(copy, source, target))


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry]
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    if sys.argv[1] == "together":
        together(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "peers":
        peers(int(sys.argv[2]))
    else:
        on_device(sys.argv[1])
