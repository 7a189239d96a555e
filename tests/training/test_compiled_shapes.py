"""`--compile` where batches have many sizes, and where memory does not suffice to try it."""

from __future__ import annotations

import pytest
import torch
from test_compilation import FLOAT32, Small
from torch import nn

from yoloyard.common.errors import memory_line
from yoloyard.common.log import shown_lines
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.training.engine.compilation import compile_network, shape_to_try, shapes_vary


def config(**words: object) -> TrainConfig:
    return with_overrides(TrainConfig(), words)


def programs() -> int:
    """How many graphs torch has compiled since its counters were cleared."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("setting", ["rect", "multi_scale"])
@pytest.mark.parametrize(
    "batch", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 64, 96))]
)  # 64 and 96 are sides, too
def test_no_batch_of_an_epoch_is_compiled_again(setting: str, batch: int) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = config(imgsz=64, batch=batch, **{setting: True})
    detector = Small().train()
    shape = shape_to_try(settings, 1, 32)
    network = compile_network(detector, detector, shape, FLOAT32, shapes_vary(settings), backend="eager")
    assert programs() == 1
    for side, other in [(64, 64), (64, 96), (96, 64), (96, 96), (128, 64), (64, 160), (128, 128)]:
        network(torch.rand(batch, 3, side, other).to(memory_format=torch.channels_last))
    assert programs() == 1


@pytest.mark.parametrize(
    ("words", "processes", "shape"),
    [
        ({}, 1, (16, 3, 640, 640)),
        ({}, 2, (8, 3, 640, 640)),
        ({"rect": True}, 1, (16, 3, 640, 672)),
        ({"multi_scale": True}, 4, (4, 3, 640, 672)),
        ({"rect": True, "imgsz": 64, "batch": 64}, 1, (64, 3, 96, 128)),
        ({"imgsz": (64, 160)}, 1, (16, 3, 64, 160)),
        ({"multi_scale": True, "imgsz": (64, 160)}, 1, (16, 3, 64, 160)),
        ({"rect": True, "imgsz": (64, 160), "batch": 160}, 1, (160, 3, 64, 192)),
        ({"rect": True, "imgsz": 64, "batch": 96}, 1, (96, 3, 64, 128)),
    ],
)
def test_a_rectangle_of_different_numbers_is_tried_where_shapes_vary(
    words: dict[str, object], processes: int, shape: tuple[int, ...]
) -> None:
    assert shape_to_try(config(**words), processes, 32) == shape


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]
OTHERS = [
    RuntimeError("no C++ compiler was found"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 101376"),
    OSError(12, "Cannot allocate memory"),  # for a process of the compiler's: the step needs none
    ValueError("memory format"),
]


@pytest.mark.parametrize(
    ("error", "where"), [*((error, "the compiler") for error in MEMORY), (MEMORY[0], "the network")], ids=str
)
def test_too_little_memory_for_the_batch_is_left_to_the_step_which_makes_parts(error: Exception, where: str) -> None:
    lines: list[str] = []
    network = compile_failing(error, where, lines)
    assert lines == []
    with pytest.raises(Exception, match=r".") as raised:
        network(torch.zeros(2, 3, 64, 64))
    assert str(error)[:40] in memory_line(raised.value)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_failures_of_the_compiler_leave_the_plain_network(error: Exception) -> None:
    lines: list[str] = []
    assert isinstance(compile_failing(error, "the compiler", lines), Small)
    assert len(lines) == 1
    assert "training goes on without it" in lines[0]
    assert not memory_line(error)


def compile_failing(error: Exception, where: str, lines: list[str]) -> nn.Module:
    """Compile a network where `error` is raised."""
    torch._dynamo.reset()
    detector = Small().train()

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        if where == "the compiler":
            raise error

        def run(*arguments: object) -> object:
            raise error

        return run

    with shown_lines(lines.append):
        return compile_network(detector, detector, (2, 3, 64, 64), FLOAT32, backend=backend)  # type: ignore[arg-type]
