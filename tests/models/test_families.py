"""The families against their published numbers and against the reference package's outputs (tests/data/README.md)."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reference import formula_images, formula_state_dict, numbers
from yoloyard.boxes import xyxy_to_cxcywh
from yoloyard.errors import UsageError
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.profile import profile

# parameters at 80 classes; billions of FLOPs of the convolutions at 640 pixels
PUBLISHED = {
    "yolov8n": (3_157_200, 8.7),
    "yolov8s": (11_166_560, 28.6),
    "yolov8m": (25_902_640, 78.9),
    "yolov8l": (43_691_520, 165.2),
    "yolov8x": (68_229_648, 257.8),
    "yolo11n": (2_624_080, 6.5),
    "yolo11s": (9_458_752, 21.5),
    "yolo11m": (20_114_688, 68.0),
    "yolo11l": (25_372_160, 86.9),
    "yolo11x": (56_966_176, 194.9),
}
NANO = ("yolov8n", "yolo11n")
POINT_STEP = 7  # of the kept outputs


def build_on_meta(name: str, num_classes: int, **arguments: int) -> Detector:
    with torch.device("meta"):
        return registry.build(name, num_classes, **arguments)


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Raw maps as (B, 64 + C, P)."""
    return torch.cat([level.flatten(2) for level in maps], dim=2)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops_are_the_published_ones(name: str) -> None:
    parameters, gflops = PUBLISHED[name]
    figures = profile(build_on_meta(name, num_classes=80))
    assert figures.parameters == parameters
    assert figures.flops / 1e9 == pytest.approx(gflops, rel=0.01)
    assert figures.strides == (8, 16, 32)


def test_profile_adds_up_over_the_layers_and_counts_attention_apart() -> None:
    figures = profile(build_on_meta("yolo11n", num_classes=80))
    assert sum(layer.parameters for layer in figures.layers) == figures.parameters
    assert sum(layer.flops for layer in figures.layers) == figures.flops
    # 2 heads, 20 x 20 positions: queries (32 wide) times keys, weights times values (64 wide)
    assert figures.attention_flops == 2 * 2 * 400 * 400 * (32 + 64)
    assert [layer.index for layer in figures.layers if layer.attention_flops] == [10]
    assert profile(build_on_meta("yolov8n", num_classes=80)).attention_flops == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_of_every_size_are_the_reference_packages(name: str) -> None:
    detector = build_on_meta(name, num_classes=80)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    expected = numbers("models.npz", name)
    with torch.no_grad():
        maps = detector.eval()(formula_images(f"{name}/80", 1, 64, 96))
    assert relative_difference(joined(maps)[..., ::POINT_STEP], expected["eval"]) < 1e-4


@pytest.mark.parametrize("name", NANO)
def test_training_evaluation_and_decoding_are_the_reference_packages(name: str) -> None:
    detector = build_on_meta(name, num_classes=3)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    images = formula_images(f"{name}/3", 2, 128, 160)
    expected = numbers("models.npz", f"{name}_3")
    with torch.no_grad():
        maps = detector.eval()(images)
        boxes_xyxy, scores = detector.decode(maps)
        training_maps = detector.train()(images)  # batch statistics instead of the running ones
    decoded = torch.cat((xyxy_to_cxcywh(boxes_xyxy), scores), dim=2).transpose(1, 2)[..., ::POINT_STEP]
    assert relative_difference(joined(maps)[..., ::POINT_STEP], expected["eval"]) < 1e-4
    assert relative_difference(joined(training_maps)[..., ::POINT_STEP], expected["train"]) < 1e-4
    assert relative_difference(decoded[:, :4], expected["decoded"][:, :4]) < 1e-4
    assert relative_difference(decoded[:, 4:], expected["decoded"][:, 4:]) < 1e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_runs_without_looking_at_a_number(name: str) -> None:
    # on the meta device there are no numbers: anything that depends on one raises
    detector = build_on_meta(name, num_classes=7, channels=1)
    maps = detector(torch.empty(2, 1, 96, 160, device="meta"))
    assert [tuple(level.shape) for level in maps] == [(2, 71, 12, 20), (2, 71, 6, 10), (2, 71, 3, 5)]
    boxes_xyxy, scores = detector.decode(maps)
    assert (boxes_xyxy.shape, scores.shape) == ((2, 315, 4), (2, 315, 7))


@pytest.mark.parametrize("name", NANO)
def test_layout_and_precision_change_nothing_but_rounding(name: str) -> None:
    detector = build_on_meta(name, num_classes=3)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    detector.eval()
    images = formula_images("layout", 1, 64, 64)
    with torch.no_grad():
        plain = joined(detector(images))
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        maps = detector(images.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half_maps = detector(images.to(memory_format=torch.channels_last))
            boxes_xyxy, scores = detector.decode(half_maps)
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in maps)
    assert relative_difference(joined(maps), plain) < 1e-4
    assert half_maps[0].dtype == torch.bfloat16
    assert relative_difference(joined(half_maps).float(), plain) < 0.05
    assert boxes_xyxy.dtype == scores.dtype == torch.float32


def test_decoding_by_hand() -> None:
    """One cell whose sides are certain: left 1, top 2, right 3, bottom 4 cells from the centre of cell (x 1, y 0)."""
    head = registry.build("yolov8n", num_classes=2).head
    maps = [torch.zeros(1, 66, 4 * 2 // scale, 8 * 2 // scale) for scale in (2, 4, 8)]
    for side, bin_number in enumerate((1, 2, 3, 4)):
        maps[1][0, side * 16 + bin_number, 0, 1] = 100.0
    maps[1][0, 64:, 0, 1] = torch.tensor([0.0, 2.0])
    boxes_xyxy, scores = head.decode(maps)
    point = 4 * 8 + 1  # behind the cells of the first level
    assert boxes_xyxy[0, point].tolist() == pytest.approx([16 * 0.5, 16 * -1.5, 16 * 4.5, 16 * 4.5])
    assert scores[0, point].tolist() == pytest.approx([0.5, 0.880797])
    # equal logits in every bin: the middle of 0 .. 15
    assert boxes_xyxy[0, 0].tolist() == pytest.approx([8 * (0.5 - 7.5)] * 2 + [8 * (0.5 + 7.5)] * 2)


@pytest.mark.parametrize("name", NANO)
def test_fresh_weights_follow_the_recipe(name: str) -> None:
    detector = registry.build(name, num_classes=80)
    state = detector.state_dict()
    for level, class_bias in enumerate((-11.5366, -10.1503, -8.7640)):
        assert torch.equal(state[f"head.box_branches.{level}.2.bias"], torch.full((64,), 2.0))
        assert state[f"head.class_branches.{level}.2.bias"].tolist() == pytest.approx([class_bias] * 80, abs=1e-4)
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    fixed = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    assert [parameter.flatten().tolist() for parameter in fixed] == [list(range(16))]


@pytest.mark.parametrize(("num_classes", "width"), [(1, 64), (70, 70), (80, 80), (300, 100)])
def test_width_of_the_class_branch_follows_the_class_count_unless_told(num_classes: int, width: int) -> None:
    def width_of(detector: Detector) -> int:
        return detector.state_dict()["head.class_branches.0.2.weight"].shape[1]

    assert width_of(build_on_meta("yolo11n", num_classes)) == width
    assert width_of(build_on_meta("yolo11n", num_classes, class_width=96)) == 96


@pytest.mark.parametrize(("name", "count"), [("yolov8n", 23), ("yolo11n", 24)])
def test_blocks_hold_every_parameter_once_in_the_published_order(name: str, count: int) -> None:
    detector = build_on_meta(name, num_classes=80)
    blocks = detector.blocks
    assert len(blocks) == count
    assert blocks[-1] is detector.head
    parameters = [parameter for block in blocks if block is not None for parameter in block.parameters()]
    assert [id(p) for p in parameters] == [id(p) for p in detector.parameters()]


def test_an_unknown_model_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'yolo11': did you mean yolo11\w\? The models are yolov8n, "):
        registry.build("yolo11", num_classes=3)
    assert registry.names() == tuple(PUBLISHED)
