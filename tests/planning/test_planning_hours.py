"""What a step, a validation and a run take: what bounds them, how they grow, and figures that others have measured."""

import dataclasses
import tomllib
from typing import Any

import pytest

from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.planning import hours
from yoloyard.planning.figures import Gpu, Precision, StepCost
from yoloyard.planning.gpus import cpu_device, find_gpu
from yoloyard.planning.hours import Correction, Estimate, Images, arithmetic, estimate, seconds_of
from yoloyard.planning.trace import trace_step

COCO = Images(118_287, 5_000)
ZEN4 = {"name": "AMD EPYC", "megahertz": 2596.0, "instructions": ["fma", "avx2", "avx512f", "avx512_bf16"]}


def cost(gigaflops: float, megabytes: float, operators: int, parameters: int, images: int = 16) -> StepCost:
    """A step in mixed precision; FLOPs and bytes moved are of an image."""
    return StepCost(
        images, "amp", False, parameters, gigaflops * 1e9 * images, megabytes * 1e6 * images, operators, 0,
        4 * parameters, 0, 0, 0, 2**30, 0,
    )  # fmt: skip


SMALL = cost(22.0, 1026, 1221, 2_600_000)  # yolo11n at 640 pixels, as traced
LARGE = cost(614.6, 4643, 2082, 86_700_000)  # yolov5x at 640 pixels, as traced


def plan(step: StepCost, gpu: str = "RTX4090", images: Images = COCO, **more: Any) -> Estimate:
    config = {name: more.pop(name) for name in [*more] if name not in ("count", "nodes", "cores", "correction")}
    settings = with_overrides(TrainConfig(), {"batch": 16, "nbs": 16, **config})
    return estimate(step, settings, images, find_gpu(gpu), **{"cores": 16, **more})


def test_yolov5x_takes_about_the_8_days_on_a_v100_that_its_authors_name() -> None:
    # https://github.com/ultralytics/yolov5/discussions/3408: the smaller ones took 2, 4 and 6 days, bound by loading
    days = plan(LARGE, "V100", epochs=300).hours / 24
    assert days == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize(
    ("step", "gpu", "more", "bound"),
    [
        (LARGE, "V100", {}, "arithmetic"),
        (SMALL, "L4", {}, "memory"),
        (
            SMALL,
            "H200",
            {"cache": "ram", "cores": 64, "workers": 32},
            "launches",
        ),  # 16 images of a small network are too few for it
        (SMALL, "RTX4090", {"cores": 2}, "loader"),
        (LARGE, "H200", {"nodes": 8}, "exchange"),
    ],
)
def test_what_bounds_a_training(step: StepCost, gpu: str, more: dict[str, Any], bound: str) -> None:
    assert plan(step, gpu, **more).bound == bound


def test_a_run_has_the_steps_of_its_epochs_and_reports_the_micro_batch() -> None:
    found = plan(LARGE, epochs=3)
    assert found.steps == 3 * 7393  # the last batch of an epoch is filled
    assert (found.micro_batch, found.kind, found.peak_bytes) == (16, "modelled", 2**30)
    assert plan(LARGE, images=Images(10, 10), epochs=3).steps == 3  # a batch of ten


def test_hours_are_steps_validations_and_the_rest() -> None:
    one, two = plan(LARGE, epochs=1).hours, plan(LARGE, epochs=2).hours
    without = plan(LARGE, epochs=2, val_period=2).hours
    assert two > one + plan(LARGE, epochs=1).steps / plan(LARGE).images_per_second * 16 / 3600
    assert one < without < two


def test_a_micro_batch_takes_as_long_but_launches_more() -> None:
    halves = dataclasses.replace(SMALL, images=8, flops=SMALL.flops / 2, bytes_moved=SMALL.bytes_moved / 2)
    assert plan(halves, "T4").images_per_second == pytest.approx(plan(SMALL, "T4").images_per_second)
    fast: dict[str, Any] = {"cores": 64, "workers": 64, "cache": "ram"}
    whole, half = (plan(step, "H200", **fast).images_per_second for step in (SMALL, halves))
    assert half == pytest.approx(whole / 2)


def test_more_gpus_share_a_batch_and_never_gain_more_than_their_number() -> None:
    one, four = plan(LARGE, batch=64), plan(LARGE, batch=64, count=4, cores=64)
    assert 2 < four.images_per_second / one.images_per_second <= 4
    inside, between = plan(LARGE, count=4, cores=64), plan(LARGE, nodes=4)
    assert between.images_per_second < inside.images_per_second  # the network is slower than PCIe


def test_gradients_are_exchanged_once_an_update() -> None:
    each, one_of_four = (plan(LARGE, nodes=8, batch=16, nbs=nbs).images_per_second for nbs in (16, 64))
    assert one_of_four > 2 * each


def test_decoded_images_that_are_kept_make_the_loader_faster() -> None:
    large = Images(5000, 100, 4e6, 4e6)
    decoded, kept = plan(SMALL, images=large, cores=4), plan(SMALL, images=large, cores=4, cache="disk")
    assert decoded.bound == "loader"
    assert kept.images_per_second > 2 * decoded.images_per_second


def test_mixed_precision_is_what_a_device_has() -> None:
    cpu = cpu_device(ZEN4, 2, 8e9)

    def types(*devices: Gpu, precision: Precision) -> list[str]:
        return [arithmetic(device, precision)[0] for device in devices]

    assert types(find_gpu("T4"), find_gpu("L4"), cpu, precision="amp") == ["float16", "bfloat16", "bfloat16"]
    assert types(find_gpu("T4"), find_gpu("L4"), cpu, precision="float32") == ["float32", "tf32", "float32"]


def test_a_correction_scales_its_part_and_makes_the_figures_measured() -> None:
    before = plan(LARGE)
    slower = plan(LARGE, correction=Correction(step=2, rest=2, memory=1.5))
    assert slower.kind == "measured"
    assert slower.hours == pytest.approx(2 * before.hours, rel=0.1)
    assert slower.peak_bytes == 1.5 * before.peak_bytes
    assert plan(LARGE, correction=Correction(loader=2)).hours == pytest.approx(before.hours, rel=0.01)


def test_each_assumption_has_a_value_a_kind_and_a_source() -> None:
    rows = tomllib.loads(hours.TABLE.read_text(encoding="utf-8"))
    assert {row["kind"] for row in rows.values()} == {"measured", "published", "modelled"}
    assert all(row["value"] > 0 and row["source"] for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "seconds"), [("float32", 1.36), ("amp", 0.818)])
def test_a_step_on_two_cores_takes_what_was_measured(precision: Precision, seconds: float) -> None:
    # docs/performance.md: yolo11n, batch 8, 640 pixels
    config = with_overrides(TrainConfig(), {"batch": 8, "nbs": 8})
    step = trace_step(config, 80, 8, precision, False, on_cpu=True)
    found = seconds_of(step, config, Images(1000, 150), cpu_device(ZEN4, 2, 8e9), 1, 1, 2, Correction())
    assert found.device == pytest.approx(seconds, rel=0.15)
    assert found.validation == pytest.approx({"float32": 9.1, "amp": 5.77}[precision], rel=0.15)
