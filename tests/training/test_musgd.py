"""MuSGD against published numbers: steps of small tensors, orthogonalised matrices, which parameters go faster."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from on_device import Training, everything, some_batch
from tiny_network import Tiny
from yoloyard.config.overrides import with_overrides
from yoloyard.config.recipes import fit_to_run, published
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.models import registry
from yoloyard.training.engine.optimizers import build_optimizer, musgd
from yoloyard.training.engine.schedule import Schedule
from yoloyard.training.state.checkpoint import Progress, read_header, restore, snapshot_of, write

MUSGD = OptimizerConfig(optimizer="MuSGD", momentum=0.9)
# Of the reference package, after the first and the third of three steps; of the 4-dimensional ones the first six.
STEPS = {
    "matrix": (
        [0.2958, -0.0088, 0.2015, 0.2907, 0.2277, 0.2301, 0.1217, 0.2812, 0.0806, 0.2010, 0.1408, 0.1824],
        [0.5273, -0.1777, 0.4182, 0.1760, 0.0439, 0.2083, 0.1277, 0.3549, 0.2858, 0.1507, 0.1056, 0.4053],
    ),
    "tall": (
        [-0.0968, -0.3396, -0.0476, -0.1513, -0.1589, -0.0703],
        [-0.1987, -0.2178, -0.1471, -0.1579, -0.2556, 0.0148],
    ),
    "square": (
        [-0.1249, 0.0807, -0.0655, -0.1341, -0.1307, -0.0498],
        [-0.2074, 0.1374, -0.1488, 0.0672, -0.0113, 0.2337],
    ),
    "bias": ([0.6425, -0.3450, 0.2675], [0.6968, -0.0797, 0.3218]),
}


def formula(shape: torch.Size | tuple[int, ...], offset: int) -> Tensor:
    n = torch.arange(torch.Size(shape).numel())
    return (((7 * n * n + 3 * n + offset) % 17) / 8 - 1).view(shape)


def test_steps_are_those_of_the_reference_package() -> None:
    rows, columns = torch.arange(4).view(4, 1), torch.arange(3)
    weights = {
        "matrix": nn.Parameter(0.1 * (rows + 1) - 0.05 * columns),
        "tall": nn.Parameter((0.02 * torch.arange(18) - 0.2).view(3, 2, 3, 1)),  # kernels of 3 x 1
        "square": nn.Parameter((0.03 * torch.arange(18) - 0.1).view(2, 1, 3, 3)),
        "bias": nn.Parameter(torch.tensor([0.5, -0.25, 0.125])),
    }
    *decayed, bias = weights.values()
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = musgd.build(groups, OptimizerConfig(lr0=0.1, momentum=0.9))
    for step in range(3):
        for weight, offset in zip(weights.values(), (0, 4, 9, 2), strict=True):
            weight.grad = formula(weight.shape, 5 * step + offset)
        optimizer.step()
        if step in (0, 2):
            for name, weight in weights.items():
                expected = torch.tensor(STEPS[name][step // 2])
                found = weight.detach().flatten()[: len(expected)]
                torch.testing.assert_close(found, expected, rtol=0, atol=6e-5, msg=f"{name}, step {step}")


def test_matrices_are_orthogonalised_as_the_reference_package_does() -> None:
    found = musgd.orthogonalised(formula((4, 3), 0).mT[None])[0].mT
    expected = [
        [-0.2578, 0.4844, -0.5039],
        [0.1709, -0.2930, -0.5078],
        [0.5117, -0.3418, 0.0129],
        [0.3652, 0.8125, -0.0698],
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=6e-5)
    assert not musgd.orthogonalised(torch.zeros(1, 2, 3)).any()  # no direction is none, not nan


def test_weights_alike_are_orthogonalised_together_but_each_by_itself() -> None:
    several = formula((3, 4, 5), 1)
    together = musgd.orthogonalised(several)
    for alone, one in zip(together, several, strict=True):
        assert torch.equal(musgd.orthogonalised(one[None])[0], alone)


def test_the_layout_in_memory_changes_nothing_but_rounding() -> None:
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(formula((6, 4, 3, 3), 0).to(memory_format=layout))
        optimizer = musgd.build([{"params": [weight], "weight_decay": 0.0}], MUSGD)
        weight.grad = formula((6, 4, 3, 3), 7).to(memory_format=layout)
        optimizer.step()
        moved.append(weight.detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-6)


def test_branches_that_learn_classes_go_three_times_as_fast() -> None:
    detector = Tiny(3)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    config = OptimizerConfig(optimizer="MuSGD", lr0=0.02, lrf=0.1, warmup_epochs=1, warmup_bias_lr=0.1)
    optimizer = build_optimizer(detector, config, decay=0.5)
    faster = [group for group in optimizer.param_groups if group["name"].startswith("class_")]
    found = {names[parameter] for group in faster for parameter in group["params"]}
    assert found == {name for name in names.values() if name.startswith("head.class_branches")}
    assert {group["name"]: group["weight_decay"] for group in faster} == {
        "class_weight": 0.5, "class_norm": 0.0, "class_bias": 0.0
    }  # fmt: skip
    schedule = Schedule(config, epochs=10, batches_per_epoch=4, batch=64)
    rates = []
    for number in (0, 2, 4):  # the beginning, the middle and the end of the warm-up
        schedule.apply(optimizer, number)
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    assert (rates[0]["weight"], rates[0]["class_weight"], rates[0]["class_norm"]) == (0, 0, 0)
    assert rates[0]["bias"] == rates[0]["class_bias"] == 0.1
    assert rates[1]["class_bias"] == pytest.approx((0.1 + 3 * 0.02) / 2)
    for kind in ("weight", "norm", "bias"):
        assert rates[2][f"class_{kind}"] == pytest.approx(3 * rates[2][kind])


def test_a_layer_with_boxes_and_classes_goes_as_fast_as_all_others() -> None:
    optimizer = build_optimizer(registry.build("yolov5n", num_classes=3), MUSGD, 0.0)
    assert {group["name"] for group in optimizer.param_groups} == {"weight", "norm", "bias"}


def test_both_branches_of_yolo26_and_its_groups() -> None:
    optimizer = build_optimizer(registry.build("yolo26n", num_classes=80), MUSGD, 0.0)
    sizes = {group["name"]: len(group["params"]) for group in optimizer.param_groups}
    assert sizes == {
        "weight": 96, "norm": 90, "bias": 96, "class_weight": 30, "class_norm": 24, "class_bias": 30
    }  # fmt: skip


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    run, other = (Training(torch.device("cpu"), model="tiny", optimization=MUSGD, accumulate=2) for _ in range(2))
    for seed in range(5):  # gradients of a batch wait for the next
        run.step(some_batch(seed=seed))
    write(snapshot_of({}, run.engine, Progress(), []), tmp_path / "last")
    restore(read_header(tmp_path / "last"), other.engine, Progress())
    for training in (run, other):
        for seed in range(5, 8):
            training.step(some_batch(seed=seed))
    found = everything(other.engine)
    assert any(name.endswith("mean_gradient") for name in found)
    for name, value in everything(run.engine).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("model", "optimizer"), [("yolo26n", "MuSGD"), ("yolo11n", "SGD")])
def test_many_updates_of_yolo26_are_made_with_it(model: str, optimizer: str) -> None:
    config = with_overrides(TrainConfig(model=model), published(model, "end_to_end"))
    large = fit_to_run(config, {}, num_images=118_000, num_classes=80)[0].optimization
    assert (large.optimizer, large.lr0, large.momentum, large.warmup_bias_lr) == (optimizer, 0.01, 0.937, 0.0)
    small = fit_to_run(config, {}, num_images=400, num_classes=5)[0].optimization
    assert small.optimizer == "AdamW"
