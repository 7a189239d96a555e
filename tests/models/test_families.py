"""The families against their published numbers and against the reference package's outputs (tests/data/README.md)."""

import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reference import ANCHORS, POINT_STEP, batch_of, formula_images, formula_state_dict, model_file, numbers
from yoloyard.common.boxes import xyxy_to_cxcywh
from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError
from yoloyard.config.settings import EvaluationConfig
from yoloyard.evaluation.validate import detect
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.importing.importers import FIRST_ROWS
from yoloyard.models.profile import profile
from yoloyard.runtimes.network import Network

# parameters at 80 classes; billions of FLOPs of the convolutions at 640 pixels
PUBLISHED = {
    "yolov5n": (1_872_157, 4.47),
    "yolov5s": (7_235_389, 16.43),
    "yolov5m": (21_190_557, 48.87),
    "yolov5l": (46_563_709, 108.99),
    "yolov5x": (86_749_405, 205.45),
    "yolov5n6": (3_246_940, 4.56),
    "yolov5s6": (12_626_620, 16.80),
    "yolov5m6": (35_731_932, 49.91),
    "yolov5l6": (76_770_172, 111.24),
    "yolov5x6": (140_794_780, 209.56),
    "yolov8n": (3_157_200, 8.7),
    "yolov8s": (11_166_560, 28.6),
    "yolov8m": (25_902_640, 78.9),
    "yolov8l": (43_691_520, 165.2),
    "yolov8x": (68_229_648, 257.8),
    "yolov8n-p2": (3_354_144, 17.2232704),
    "yolov8s-p2": (10_884_336, 39.3416704),
    "yolov8m-p2": (25_082_496, 98.4240128),
    "yolov8l-p2": (42_888_080, 205.4111232),
    "yolov8x-p2": (66_637_536, 316.921856),
    "yolo11n": (2_624_080, 6.5),
    "yolo11s": (9_458_752, 21.5),
    "yolo11m": (20_114_688, 68.0),
    "yolo11l": (25_372_160, 86.9),
    "yolo11x": (56_966_176, 194.9),
    "yolo12n": (2_602_288, 6.5),
    "yolo12s": (9_284_096, 21.4),
    "yolo12m": (20_199_168, 67.5),
    "yolo12l": (26_450_784, 88.9),
    "yolo12x": (59_210_784, 199.0),
    "yolo26n": (2_572_280, 5.96),
    "yolo26s": (10_009_784, 22.53),
    "yolo26m": (21_896_248, 74.77),
    "yolo26l": (26_299_704, 93.01),
    "yolo26x": (58_993_368, 208.36),
    "yolov13n": (2_494_151, 6.21),
    "yolov13s": (9_055_527, 19.92),
    "yolov13l": (27_627_783, 84.77),
    "yolov13x": (64_057_511, 188.39),
}
# YOLO26 with one of its two pairs of branches, normalisation folded: parameters, billions of FLOPs with attention; then
# those of the whole network as the original counts them, which are eight for each value that is normalised, too
ONE_PATH = {
    "yolo26n": (2_408_932, 5.480, 6.240),
    "yolo26s": (9_496_140, 20.933, 23.079),
    "yolo26m": (20_411_132, 68.426, 75.635),
    "yolo26l": (24_807_420, 86.796, 94.158),
    "yolo26x": (55_725_948, 194.418, 210.075),
}
# YOLO11 with a level of stride 4, which the reference package does not have: what its parts add up to.
OWN = {
    "yolo11n-p2": (2_740_032, 11.158),
    "yolo11s-p2": (9_625_968, 29.255),
    "yolo11m-p2": (20_591_120, 88.105),
    "yolo11l-p2": (26_116_368, 112.487),
    "yolo11x-p2": (57_849_456, 243.552),
}
ANCHOR_FREE_NANO = ("yolov8n", "yolov8n-p2", "yolo11n", "yolo12n", "yolo26n", "yolov13n")
ANCHOR_BASED_NANO = ("yolov5n", "yolov5n6")
NANO = (*ANCHOR_FREE_NANO, *ANCHOR_BASED_NANO)
# The smallest of each family; the others, which say the same of larger tables, are slow.
SIZES = [
    pytest.param(name, marks=[] if name.removesuffix("6").removesuffix("-p2")[-1] == "n" else [pytest.mark.slow])
    for name in PUBLISHED
]


def strides_of(name: str) -> tuple[int, ...]:
    return {"6": (8, 16, 32, 64), "2": (4, 8, 16, 32)}.get(name[-1], (8, 16, 32))


def build_on_meta(name: str, num_classes: int, **arguments: int) -> Detector:
    with torch.device("meta"):
        return registry.build(name, num_classes, **arguments)


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Raw maps as (B, outputs, P)."""
    return torch.cat([level.flatten(2) for level in maps], dim=2)


def without_dropout(detector: Detector) -> None:
    for module in detector.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    detector = build_on_meta(name, num_classes=80)
    assert sum(map(torch.numel, detector.parameters())) == PUBLISHED[name][0]
    size = name.removesuffix("6").removesuffix("-p2")[-1]
    assert len(next(detector.parameters())) in FIRST_ROWS[size]  # so that files are recognised


@pytest.mark.parametrize("name", SIZES)
def test_a_profile_says_the_published_flops(name: str) -> None:
    parameters, gflops = PUBLISHED[name]
    figures = profile(build_on_meta(name, num_classes=80))
    assert figures.parameters == parameters
    assert figures.flops / 1e9 == pytest.approx(gflops, rel=0.01)
    assert figures.strides == strides_of(name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "yolo11n-p2" else [pytest.mark.slow]) for name in OWN]
)
def test_yolo11_gets_from_a_level_of_stride_4_what_yolov8_gets(name: str) -> None:
    """One more step down the pyramid and up again, and a branch of each kind; all else is as without that level."""
    own = profile(fine := build_on_meta(name, num_classes=80))
    assert (own.parameters, own.strides) == (OWN[name][0], strides_of(name))
    assert own.flops / 1e9 == pytest.approx(OWN[name][1], rel=1e-4)
    coarse = build_on_meta(name.removesuffix("-p2"), num_classes=80)
    for part, more in (("backbone", set()), ("neck", {"top_down2", "downsample3", "bottom_up3"})):
        shapes = {each: tensor.shape for each, tensor in fine.get_submodule(part).state_dict().items()}
        before = {each: tensor.shape for each, tensor in coarse.get_submodule(part).state_dict().items()}
        assert before.items() <= shapes.items()
        assert {each.split(".")[0] for each in shapes.keys() - before} == more


@pytest.mark.parametrize("name", [size for size in SIZES if size.values[0] in ONE_PATH])
def test_one_path_of_yolo26_has_the_published_numbers(name: str) -> None:
    parameters, gflops, gflops_of_all = ONE_PATH[name]
    detector = build_on_meta(name, num_classes=80)
    fused = [detector.fused(suppression) for suppression in (True, False)]
    assert [sum(map(torch.numel, each.parameters())) for each in fused] == [parameters] * 2
    figures = profile(fused[1])
    assert (figures.flops + figures.attention_flops) / 1e9 == pytest.approx(gflops, abs=5e-4)
    normalised: list[int] = []
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _module, _inputs, output: normalised.append(output.numel()))
    figures = profile(detector)
    counted = figures.flops + figures.attention_flops + 8 * sum(normalised)
    assert counted / 1e9 == pytest.approx(gflops_of_all, abs=1e-3)


def test_profile_adds_up_over_the_layers_and_counts_attention_apart() -> None:
    figures = profile(build_on_meta("yolo11n", num_classes=80))
    assert sum(layer.parameters for layer in figures.layers) == figures.parameters
    assert sum(layer.flops for layer in figures.layers) == figures.flops
    # 2 heads, 20 x 20 positions: queries (32 wide) times keys, weights times values (64 wide)
    assert figures.attention_flops == 2 * 2 * 400 * 400 * (32 + 64)
    assert [layer.index for layer in figures.layers if layer.attention_flops] == [10]
    assert profile(build_on_meta("yolov8n", num_classes=80)).attention_flops == 0
    # four blocks each: 2 heads in 4 bands of 400 positions, 4 heads in one; queries, keys and values 32 wide
    areas = profile(build_on_meta("yolo12n", num_classes=80))
    assert areas.attention_flops == 4 * 2 * (2 * 4 + 4) * 400 * 400 * (32 + 32)
    assert [layer.index for layer in areas.layers if layer.attention_flops] == [6, 8]
    hypergraph = profile(build_on_meta("yolov13n", num_classes=80))
    assert (hypergraph.flops + hypergraph.attention_flops) / 1e9 == pytest.approx(7.25, abs=0.005)
    assert [layer.index for layer in hypergraph.layers if layer.attention_flops] == [6, 8, 9]


WITH_OUTPUTS = [each for each in SIZES if not re.fullmatch("yolov8[smlx]-p2", str(each.values[0]))]  # kept of n alone


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_outputs_of_every_size_are_the_reference_packages(name: str) -> None:
    detector = build_on_meta(name, num_classes=80)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    expected = numbers(model_file(name), name)
    with torch.no_grad():
        maps = detector.eval()(formula_images(f"{name}/80", 1, 64, 128 if name.endswith("6") else 96))
    assert relative_difference(joined(maps)[..., ::POINT_STEP], expected["eval"]) < 1e-4


@pytest.mark.parametrize("name", NANO)
def test_training_evaluation_and_decoding_are_the_reference_packages(name: str) -> None:
    detector = build_on_meta(name, num_classes=3)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    images = formula_images(f"{name}/3", batch_of(name), 128, 192 if name.endswith("6") else 160)
    expected = numbers(model_file(name), f"{name}_3")
    with torch.no_grad():
        maps = detector.eval()(images)
        boxes_xyxy, scores = detector.decode(maps)
        without_dropout(detector)
        training_maps = detector.train()(images)  # batch statistics instead of the running ones
    decoded = torch.cat((xyxy_to_cxcywh(boxes_xyxy), scores), dim=2).transpose(1, 2)[..., ::POINT_STEP]
    assert relative_difference(joined(maps)[..., ::POINT_STEP], expected["eval"]) < 1e-4
    assert relative_difference(joined(training_maps)[..., ::POINT_STEP], expected["train"]) < 1e-4
    assert relative_difference(decoded[:, :4], expected["decoded"][:, :4]) < 1e-4
    assert relative_difference(decoded[:, 4:], expected["decoded"][:, 4:]) < 1e-4


def test_detections_without_suppression_are_the_reference_packages() -> None:
    detector = build_on_meta("yolo26n", num_classes=3)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    images = (formula_images("yolo26n/3", 2, 128, 160) * 255).round().byte()
    network = Network(detector, torch.device("cpu"), Precision("cpu", torch.float32, "accelerator"), suppression=False)
    found = detect(network, images, [None, None], EvaluationConfig(conf=0.0), multi_label=False)
    rows = 100  # below them some scores are equal but for rounding
    for own, expected in zip(found, numbers("yolo26.npz", "yolo26n_3")["end2end"], strict=True):
        assert len(own.boxes) == len(expected) == 300
        assert relative_difference(own.boxes[:rows], expected[:rows, :4]) < 1e-4
        assert relative_difference(own.scores[:rows], expected[:rows, 4]) < 1e-4
        assert own.labels[:rows].tolist() == expected[:rows, 5].tolist()
        assert relative_difference(own.scores, expected[:, 4]) < 1e-4


@pytest.mark.parametrize("name", SIZES)
def test_every_size_runs_without_looking_at_a_number(name: str) -> None:
    # on the meta device there are no numbers: anything that depends on one raises
    detector = build_on_meta(name, num_classes=7, channels=1)
    maps = detector(torch.empty(2, 1, 128, 192, device="meta"))
    anchors = 3 if name.startswith("yolov5") else 1
    channels = {"yolov5": anchors * (5 + 7), "yolo26": 2 * (4 + 7)}.get(name[:6], 64 + 7)
    sizes = [(128 // stride, 192 // stride) for stride in strides_of(name)]
    assert [tuple(level.shape) for level in maps] == [(2, channels, *size) for size in sizes]
    boxes_xyxy, scores = detector.decode(maps)
    points = anchors * sum(height * width for height, width in sizes)
    assert (boxes_xyxy.shape, scores.shape) == ((2, points, 4), (2, points, 7))


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


def test_anchor_based_decoding_by_hand() -> None:
    """The second anchor, 62 x 45, of cell (x 3, y 1) at stride 16; all else is zero."""
    head = registry.build("yolov5n", num_classes=2).head
    maps = [torch.zeros(1, 3 * 7, 4 * 2 // scale, 8 * 2 // scale) for scale in (2, 4, 8)]
    maps[1][0, 7:14, 1, 3] = torch.tensor([100.0, -100.0, 100.0, 0.0, 2.0, 0.0, 100.0])
    boxes_xyxy, scores = head.decode(maps)
    point = 3 * 4 * 8 + 1 * 2 * 4 + 1 * 4 + 3  # behind the first level, and the first anchor of the second
    centre_x, centre_y, width, height = 16 * (3 + 1.5), 16 * (1 - 0.5), 4 * 62, 45
    assert boxes_xyxy[0, point].tolist() == pytest.approx(
        [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
    )
    assert scores[0, point].tolist() == pytest.approx([0.880797 * 0.5, 0.880797])
    # the first anchor of the first cell, as large as it is, in the middle of the cell
    assert boxes_xyxy[0, 0].tolist() == pytest.approx([4 - 5, 4 - 6.5, 4 + 5, 4 + 6.5])


@pytest.mark.parametrize("name", ANCHOR_BASED_NANO)
def test_fresh_anchor_based_weights_follow_the_recipe(name: str) -> None:
    state = registry.build(name, num_classes=80).state_dict()
    for level, objectness in enumerate((-6.6846, -5.2983, -3.9120, -2.5257)[: len(strides_of(name))]):
        fan_in = state[f"head.predictions.{level}.weight"].shape[1]
        biases = state[f"head.predictions.{level}.bias"].view(3, 85)
        for part, constant in ((biases[:, :4], 0.0), (biases[:, 4], objectness), (biases[:, 5:], -4.8803)):
            assert (part - constant).abs().max() <= fan_in**-0.5 + 1e-4
    assert state["head.anchors"].tolist() == [list(map(list, level)) for level in ANCHORS[len(strides_of(name))]]


@pytest.mark.parametrize("name", ANCHOR_FREE_NANO)
def test_fresh_weights_follow_the_recipe(name: str) -> None:
    detector = registry.build(name, num_classes=80)
    state = detector.state_dict()
    for level, stride in enumerate(strides_of(name)):
        class_bias = math.log(5 / 80 / (640 / stride) ** 2)  # -11.5366, -10.1503, -8.7640 for 8, 16, 32
        box_outputs = 4 if name == "yolo26n" else 64
        box_bias = torch.full((box_outputs,), 1.0 if name == "yolov13n" else 2.0)
        for pair in ("", "one_to_one_") if name == "yolo26n" else ("",):
            assert torch.equal(state[f"head.{pair}box_branches.{level}.2.bias"], box_bias)
            biases = state[f"head.{pair}class_branches.{level}.2.bias"].tolist()
            assert biases == pytest.approx([class_bias] * 80, abs=1e-4)
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    fixed = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    assert [parameter.flatten().tolist() for parameter in fixed] == ([] if name == "yolo26n" else [list(range(16))])


def test_branches_of_both_kinds_begin_alike_and_only_one_kind_moves_the_backbone() -> None:
    detector = registry.build("yolo11n", num_classes=3, paths="both")
    maps = detector.eval()(formula_images("both", 1, 64, 64))
    outputs = 64 + 3
    assert all(torch.equal(level[:, :outputs], level[:, outputs:]) for level in maps)
    joined(maps)[:, outputs:].sum().backward()
    gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
    moved = {name.split(".")[1] for name, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert moved == {"one_to_one_box_branches", "one_to_one_class_branches"}


@pytest.mark.parametrize(("num_classes", "width"), [(1, 64), (70, 70), (80, 80), (300, 100)])
def test_width_of_the_class_branch_follows_the_class_count_unless_told(num_classes: int, width: int) -> None:
    def width_of(detector: Detector) -> int:
        return detector.state_dict()["head.class_branches.0.2.weight"].shape[1]

    assert width_of(build_on_meta("yolo11n", num_classes)) == width
    assert width_of(build_on_meta("yolo11n", num_classes, class_width=96)) == 96


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("yolov8n", 23),
        ("yolo11n", 24),
        ("yolo12n", 22),
        ("yolo26n", 24),
        ("yolov13n", 33),
        ("yolov13l", 33),
        ("yolov8n-p2", 29),
        ("yolo11n-p2", 30),
        ("yolov5n", 25),
        ("yolov5n6", 34),
    ],
)
def test_blocks_hold_every_parameter_once(name: str, count: int) -> None:
    detector = build_on_meta(name, num_classes=80)
    blocks = detector.blocks
    assert len(blocks) == count
    assert blocks[-1] is detector.head
    parameters = [parameter for block in blocks if block is not None for parameter in block.parameters()]
    assert sorted(map(id, parameters)) == sorted(map(id, detector.parameters()))


def test_an_unknown_model_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'yolo11': did you mean yolo11\w\? The models are yolov5n, "):
        registry.build("yolo11", num_classes=3)
    others = {name for name in registry.BUILDERS if name.startswith("yolov9")}  # see test_yolov9.py
    assert {*PUBLISHED, *OWN} | others == {*registry.BUILDERS}
