"""A training step on whatever device there is: the checks of on_device.py, on the CPU always, with `-m gpu` on CUDA."""

import pytest
import torch

import on_device
from on_device import ADAMW, SGD

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
GPU = pytest.param(torch.device("cuda"), marks=[pytest.mark.gpu, NEEDS_CUDA], id="cuda")
CPU = pytest.param(torch.device("cpu"), id="cpu")


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("model", ["yolo11n", "yolov5n", "yolo26n"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_waits_for_nothing(model: str, dtype: torch.dtype) -> None:
    on_device.check_that_steps_wait_for_nothing(torch.device("cuda"), dtype, model)


@pytest.mark.parametrize(
    ("dtype", "model"), [(torch.float32, "yolo11n"), (torch.float16, "yolov5n"), (torch.float32, "tiny both")], ids=str
)
def test_no_operation_of_a_step_reads_a_number(dtype: torch.dtype, model: str) -> None:
    on_device.check_that_steps_wait_for_nothing(torch.device("cpu"), dtype, model, steps=2)


def test_a_read_in_the_step_is_noticed() -> None:
    cpu = torch.device("cpu")
    training = on_device.Training(cpu)
    criterion = training.engine.criterion
    training.engine.criterion = lambda maps, boxes, labels: criterion(
        maps, boxes[labels >= 0][None], labels[labels >= 0][None]
    )
    with pytest.raises(AssertionError, match="makes the host wait"), on_device.no_waiting(cpu):
        training.step(on_device.some_batch(images=1))


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("model", ["yolo11n", "yolo12n", "yolov5n", "yolo26n"])
def test_losses_are_those_of_the_cpu(device: torch.device, model: str) -> None:
    on_device.check_that_losses_are_those_of_the_cpu(device, model)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("float16", [False, True])
def test_a_bad_step_leaves_no_trace_on_the_device(device: torch.device, float16: bool) -> None:
    dtype, optimization = (torch.float16, SGD) if float16 else (torch.float32, ADAMW)
    on_device.check_that_a_bad_step_leaves_no_trace(device, dtype, optimization)


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_network_gives_the_same_losses(dtype: torch.dtype) -> None:
    on_device.check_that_compiling_changes_nothing(torch.device("cuda"), dtype)
