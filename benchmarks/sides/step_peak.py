"""What the processor reaches at most, GFLOP/s of a large product of matrices and of a 3x3 convolution, as JSON.

`step_peak.py THREADS DTYPE ...`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from yoloyard.models import registry
from yoloyard.models.profile import profile


def main() -> None:
    found = {"gigaflops_of_step": 3 * 8 * profile(registry.build("yolo11n", num_classes=80)).flops / 1e9}
    for threads in (1, int(sys.argv[1])):
        torch.set_num_threads(threads)
        for dtype_name in sys.argv[2:]:
            dtype, name = getattr(torch, dtype_name), f"{dtype_name} {threads}"
            a, b = torch.randn(2, 2048, 2048).to(dtype)
            found[f"matmul {name}"] = 2 * 2048**3 / best(lambda a=a, b=b: a @ b) / 1e9  # type: ignore[misc]
            layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).to(dtype)
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = torch.randn(8, 128, 80, 80).to(dtype, memory_format=torch.channels_last)
            operations = 2 * 8 * 80 * 80 * 9 * 128 * 128
            with torch.no_grad():
                convolve: Callable[[], object] = lambda layer=layer, images=images: layer(images)  # type: ignore[misc] # noqa: E731
                found[f"convolution {name}"] = operations / best(convolve) / 1e9
    print(json.dumps(found))


def best(work: Callable[[], object]) -> float:
    """The shortest of twelve times, in seconds."""
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
