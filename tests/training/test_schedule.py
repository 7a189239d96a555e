"""Parameter groups, learning rate, momentum and accumulation, by the specification's numbers."""

import pytest
import torch

from yoloyard.config.overrides import with_overrides
from yoloyard.config.recipes import RECIPES, fit_to_run, published
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.models import registry
from yoloyard.training.engine.optimizers import build_optimizer, parameter_groups
from yoloyard.training.engine.schedule import Schedule


def test_groups_of_yolo11n() -> None:
    groups = parameter_groups(registry.build("yolo11n", num_classes=7))
    assert {name: len(parameters) for name, parameters in groups.items()} == {"weight": 87, "norm": 81, "bias": 87}


def test_updates_of_the_published_case() -> None:
    """26 images, batch 4, nominal batch 16, 5 epochs, 2 of them warm-up."""
    schedule = Schedule(OptimizerConfig(nbs=16, warmup_epochs=2), epochs=5, batches_per_epoch=7, batch=4)
    assert schedule.warmup_batches == 14
    updates, last = [], -1
    for number in range(35):
        if number - last >= schedule.accumulate_at(number):
            updates.append(number)
            last = number
    assert updates == [0, 1, 2, 4, 6, 9, 13, 17, 21, 25, 29, 33]


@pytest.mark.parametrize(("batch", "decay"), [(16, 0.0005), (64, 0.0005), (128, 0.001)])
def test_decay_is_scaled_to_the_images_of_an_update(batch: int, decay: float) -> None:
    assert Schedule(OptimizerConfig(), 10, 10, batch).decay == pytest.approx(decay)


@pytest.mark.parametrize("cosine", [False, True])
def test_rates_begin_at_zero_warm_up_and_fall_to_the_end(cosine: bool) -> None:
    config = OptimizerConfig(optimizer="SGD", lr0=0.02, lrf=0.1, warmup_epochs=1, cos_lr=cosine)
    schedule = Schedule(config, epochs=10, batches_per_epoch=5, batch=64)
    optimizer = build_optimizer(registry.build("yolo11n", num_classes=1), config, schedule.decay)
    rates: dict[str, list[float]] = {"weight": [], "norm": [], "bias": []}
    momenta = []
    for number in range(50):
        schedule.apply(optimizer, number)
        for group in optimizer.param_groups:
            rates[group["name"]].append(group["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert rates["weight"][0] == 0
    assert rates["bias"][0] == pytest.approx(config.warmup_bias_lr)
    assert (rates["weight"][5], rates["bias"][5]) == pytest.approx((0.02 * schedule.factor(1),) * 2)
    assert (momenta[0], momenta[5]) == (pytest.approx(0.8), pytest.approx(config.momentum))
    after = rates["norm"][5:]
    assert after == sorted(after, reverse=True)
    assert schedule.factor(0) == 1
    assert 0.1 < schedule.factor(9) < 0.2


def test_frozen_parameters_are_in_no_group() -> None:
    detector = registry.build("yolo11n", num_classes=1)
    for parameter in detector.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(Exception, match="nothing is left to train"):
        build_optimizer(detector, OptimizerConfig(), 0.0)


def test_small_sets_get_their_recipe_and_large_ones_the_published_one() -> None:
    small, line = fit_to_run(TrainConfig(epochs=20), {}, num_images=400, num_classes=5)
    assert (small.optimization.nbs, small.optimization.optimizer) == (16, "AdamW")
    assert small.optimization.warmup_epochs < 3
    assert "small sets" in line
    large, line = fit_to_run(TrainConfig(epochs=100), {}, num_images=118_000, num_classes=80)
    assert (large.optimization.nbs, large.optimization.optimizer, large.optimization.lr0) == (64, "SGD", 0.01)
    middle, _ = fit_to_run(TrainConfig(epochs=100), {}, num_images=5_000, num_classes=80)
    assert (middle.optimization.optimizer, middle.optimization.lr0) == ("AdamW", 0.000119)


def test_a_recipe_never_touches_what_the_user_gave() -> None:
    given = {"lr0": 0.3, "warmup_epochs": 2.5, "close_mosaic": 7, "optimizer": "SGD", "momentum": 0.5}
    config, _ = fit_to_run(with_overrides(TrainConfig(epochs=20), given), given, num_images=400, num_classes=5)
    optimization = config.optimization
    assert (optimization.lr0, optimization.warmup_epochs, config.augment.close_mosaic) == (0.3, 2.5, 7)
    assert (optimization.optimizer, optimization.momentum) == ("SGD", 0.5)
    own, _ = fit_to_run(with_overrides(TrainConfig(epochs=20), {"nbs": 64}), {"nbs"}, num_images=400, num_classes=5)
    assert own.optimization.nbs == 64


def test_every_model_has_its_published_recipe() -> None:
    assert {name for name in registry.BUILDERS if any(name.startswith(start) for start in RECIPES)} == {
        *registry.BUILDERS
    }
    low, high = published("yolov5s6", "anchor_based"), published("yolov5x", "anchor_based")
    assert (low["box"], low["cls"], low["obj"], low["iou"]) == (0.05, 0.5, 1.0, 0.6)
    assert (high["cls"], high["obj"], high["lrf"], high["scale"], high["mixup"]) == (0.3, 0.7, 0.1, 0.9, 0.1)
    assert published("yolo12n", "task_aligned") == {}
    assert published("yolov13n", "task_aligned") == {"warmup_bias_lr": 0.0}
    assert published("yolov13x", "task_aligned") == {"warmup_bias_lr": 0.0, "scale": 0.9, "mixup": 0.2}
    for words in RECIPES.values():
        with_overrides(TrainConfig(), words)
    # a network of the user's own gets the gains of its kind of head
    assert published("/home/me/my_model.py:build", "anchor_based") == low
    assert published("/home/me/my_model.py:build", "task_aligned") == {}
    assert published("yolov5x_of_mine.py:build", "task_aligned") == {}  # what it is called means nothing


def test_yolov5_trains_with_sgd_but_for_small_sets() -> None:
    recipe = dict(published("yolov5n", "anchor_based"))
    large, _ = fit_to_run(with_overrides(TrainConfig(), recipe), {}, num_images=118_000, num_classes=80)
    assert (large.optimization.optimizer, large.optimization.lr0, large.optimization.momentum) == ("SGD", 0.01, 0.937)
    assert large.optimization.warmup_bias_lr == 0.1
    small, _ = fit_to_run(with_overrides(TrainConfig(epochs=20), recipe), {}, num_images=400, num_classes=5)
    assert (small.optimization.optimizer, small.optimization.lr0) == ("AdamW", 0.002)
    given = {"lr0": 0.005}
    own, _ = fit_to_run(with_overrides(TrainConfig(epochs=20), recipe | given), given, num_images=400, num_classes=5)
    assert (own.optimization.optimizer, own.optimization.lr0) == ("SGD", 0.005)


def test_momentum_is_there_before_the_first_step() -> None:
    optimizer = build_optimizer(registry.build("yolo11n", num_classes=1), OptimizerConfig(optimizer="SGD"), 0.0)
    buffers = [entry["momentum_buffer"] for entry in optimizer.state.values()]
    assert len(buffers) == 255
    assert all(not torch.count_nonzero(buffer) for buffer in buffers)
