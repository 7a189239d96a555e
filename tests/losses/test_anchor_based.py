"""YOLOv5's loss: equal to a plain loop over images, boxes and anchors, and what it promises about shapes and memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from memory import LiveBytes
from yoloyard.common.boxes import complete_iou, cxcywh_to_xyxy
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion
from yoloyard.losses.anchor_based import AnchorBasedLoss
from yoloyard.models import registry
from yoloyard.models.yolov5 import P5_ANCHORS, P6_ANCHORS

STRIDES = (8, 16, 32)
ANCHORS = torch.tensor(P5_ANCHORS, dtype=torch.float32)


def some_maps(size: int, classes: int, images: int = 1, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, 3 * (5 + classes), size // stride, size // stride) for stride in STRIDES]
    if device == "meta":
        return [torch.empty(shape, device=device, requires_grad=True) for shape in shapes]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def means(parts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {name: (sums / norms.clamp(min=1)).sum() for name, (sums, norms) in parts.items()}


def by_plain_loops(
    maps: list[Tensor], boxes: list[list[tuple[float, ...]]], classes: int, smoothing: float = 0.0
) -> dict[str, float]:
    """The published rules, row by row. `boxes` of each image: class, centre x, centre y, width, height in pixels."""
    sums = {"box": 0.0, "obj": 0.0, "cls": 0.0}
    for level, stride, anchors, balance in zip(maps, STRIDES, ANCHORS, (4.0, 1.0, 0.4), strict=True):
        height, width = level.shape[2:]
        outputs = level.detach().unflatten(1, (3, 5 + classes))  # (B, A, 5 + C, h, w)
        target = torch.zeros(len(maps[0]), 3, height, width)
        box_terms, class_terms = [], []
        for step_x, step_y in ((0, 0), (-0.5, 0), (0, -0.5), (0.5, 0), (0, 0.5)):
            for a, anchor in enumerate(anchors / stride):
                for image, own in enumerate(boxes):
                    for label, *pixels in own:
                        x, y, w, h = (torch.tensor(pixels, dtype=torch.float32) / stride).tolist()
                        if min(w, h) <= 0 or max(w / anchor[0], anchor[0] / w, h / anchor[1], anchor[1] / h) >= 4:
                            continue
                        from_edge = {-0.5: (x, y), 0.5: (width - x, height - y)}.get(step_x or step_y)
                        if from_edge is not None:
                            distance = from_edge[0] if step_x else from_edge[1]
                            if not (distance % 1 < 0.5 and distance > 1):
                                continue
                        column = min(max(int(x + step_x), 0), width - 1)
                        row = min(max(int(y + step_y), 0), height - 1)
                        logits = outputs[image, a, :, row, column]
                        predicted = torch.cat(
                            (2 * logits[:2].sigmoid() - 0.5, (2 * logits[2:4].sigmoid()) ** 2 * anchor)
                        )
                        true = torch.tensor([x - column, y - row, w, h])
                        ciou = float(complete_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true)))
                        target[image, a, row, column] = max(ciou, 0)
                        box_terms.append(1 - ciou)
                        true_classes = torch.full((classes,), smoothing / 2)
                        true_classes[int(label)] = 1 - smoothing / 2
                        class_terms.append(float(binary_cross_entropy_with_logits(logits[5:], true_classes)))
        sums["box"] += sum(box_terms) / max(len(box_terms), 1)
        sums["cls"] += sum(class_terms) / max(len(class_terms), 1)
        sums["obj"] += balance * float(binary_cross_entropy_with_logits(outputs[:, :, 4], target))
    return sums


def padded(boxes: list[list[tuple[float, ...]]]) -> tuple[Tensor, Tensor]:
    most = max(map(len, boxes)) + 1
    boxes_xyxy, labels = torch.zeros(len(boxes), most, 4), torch.full((len(boxes), most), -1)
    for image, own in enumerate(boxes):
        for slot, (label, *pixels) in enumerate(own):
            boxes_xyxy[image, slot] = cxcywh_to_xyxy(torch.tensor(pixels))
            labels[image, slot] = int(label)
    return boxes_xyxy, labels


# Eighths of a pixel are exact as centre and size and as corners; multiples of 4 hit the borders of cells and halves.
EIGHTHS = st.integers(0, 96 * 8).map(lambda number: number / 8)
GRID = st.integers(0, 24).map(lambda number: 4.0 * number)
BOX = st.tuples(
    st.integers(0, 2),
    EIGHTHS | GRID,
    EIGHTHS | GRID,
    st.integers(0, 480).map(lambda n: n / 4),
    st.sampled_from((4.0, 30.0, 64.0)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(BOX, max_size=6), min_size=2, max_size=2), st.sampled_from((0.0, 0.1)))
def test_equal_to_a_plain_loop(boxes: list[list[tuple[float, ...]]], smoothing: float) -> None:
    maps = some_maps(96, 3, images=2)
    parts = AnchorBasedLoss(ANCHORS, STRIDES, 3, label_smoothing=smoothing)(maps, *padded(boxes))
    expected = by_plain_loops(maps, boxes, 3, smoothing)
    assert {name: value.item() for name, value in means(parts).items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_of_rows_for_the_same_cell_the_last_box_is_the_objectness_target() -> None:
    boxes: list[list[tuple[float, ...]]] = [[(0, 44, 44, 30, 40), (1, 45, 45, 33, 23), (2, 44, 43, 20, 31)]]
    maps = some_maps(96, 3)
    criterion = AnchorBasedLoss(ANCHORS, STRIDES, 3)
    forward = means(criterion(maps, *padded(boxes)))["obj"].item()
    backward = means(criterion(maps, *padded([boxes[0][::-1]])))["obj"].item()
    assert forward != backward
    assert forward == pytest.approx(by_plain_loops(maps, boxes, 3)["obj"], rel=1e-5)


def test_positive_weights_multiply_what_positive_targets_contribute() -> None:
    maps, targets = some_maps(96, 3), padded([[(1, 44, 44, 30, 40)]])
    plain = means(AnchorBasedLoss(ANCHORS, STRIDES, 3)(maps, *targets))
    weighted = means(AnchorBasedLoss(ANCHORS, STRIDES, 3, cls_pw=3.0, obj_pw=3.0)(maps, *targets))
    thrice = means(AnchorBasedLoss(ANCHORS, STRIDES, 3, cls_pw=5.0, obj_pw=5.0)(maps, *targets))
    assert weighted["box"].item() == plain["box"].item()
    for part in ("obj", "cls"):  # linear in the weight
        assert weighted[part].item() > plain[part].item()
        assert (thrice[part] - plain[part]).item() == pytest.approx(2 * (weighted[part] - plain[part]).item(), rel=1e-3)


def test_losses_and_gradients_stay_finite_at_the_edges(edge_boxes: list[list[float]]) -> None:
    maps = some_maps(64, 3)
    labels = [-1 if box == [0.0, 0, 0, 0] else 0 for box in edge_boxes]
    criterion = AnchorBasedLoss(ANCHORS, STRIDES, 3)
    parts = means(criterion(maps, torch.tensor(edge_boxes).view(1, -1, 4), torch.tensor([labels]).long()))
    loss = parts["box"] + parts["obj"] + parts["cls"]
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in maps)
    if not any(label >= 0 for label in labels):
        assert parts["box"].item() == parts["cls"].item() == 0
        assert parts["obj"].item() > 0


def test_one_class_has_no_class_loss() -> None:
    parts = AnchorBasedLoss(ANCHORS, STRIDES, 1)(some_maps(96, 1), *padded([[(0, 44, 44, 30, 40)]]))
    assert parts["cls"][0].tolist() == [0, 0, 0]
    assert parts["box"][1].sum() > 0


def test_five_thousand_boxes_an_image_need_less_than_a_gigabyte() -> None:
    """Batch 16 at 640 pixels, 20 classes, forward and backward of the loss: beside the maps, at most 1 GB at once.

    Each of the 80,000 boxes may be learned by 9 anchors in 5 cells: 3.6 million rows, of which nothing is left out.
    """
    with LiveBytes() as memory:
        maps = some_maps(640, 20, images=16, device="meta")
        boxes = torch.empty(16, 5000, 4, device="meta")
        labels = torch.empty(16, 5000, dtype=torch.int64, device="meta")
        parts = means(AnchorBasedLoss(ANCHORS.to("meta"), STRIDES, 20)(maps, boxes, labels))
        (parts["box"] + parts["obj"] + parts["cls"]).backward()
    assert memory.peak < 2**30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6"])
def test_model_and_loss_compile_into_one_graph(name: str) -> None:
    """`fullgraph` fails on anything that waits for the device or depends on the data in shape."""
    detector = registry.build(name, num_classes=3)
    anchors = torch.tensor(P6_ANCHORS if name.endswith("6") else P5_ANCHORS, dtype=torch.float32)
    criterion = AnchorBasedLoss(anchors, detector.strides, 3)

    def step(images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        parts = means(criterion(detector(images), boxes, labels))
        return parts["box"] + parts["obj"] + parts["cls"]

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[4.0, 4, 30, 40], [10, 12, 50, 30]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    labels = torch.tensor([[0, 2], [-1, -1]])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss = compiled(images, boxes, labels)
    loss.backward()
    assert loss.item() == pytest.approx(step(images, boxes, labels).item(), rel=1e-4)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_norms_follow_from_the_labels_alone(classes: int) -> None:
    loss = AnchorBasedLoss(ANCHORS, STRIDES, classes)
    boxes = torch.tensor([[[4.0, 6, 40, 50], [20, 10, 60, 30]], [[1, 1, 9, 12], [0, 0, 0, 0]]])
    labels = torch.tensor([[0, classes - 1], [0, -1]])
    expected = loss(some_maps(64, classes, images=2), boxes, labels)
    found = loss.norms((64, 64), boxes, labels)
    assert found.keys() == expected.keys()
    for name, (_, norms) in expected.items():
        assert torch.equal(found[name], norms), name
    assert found["box"].sum() > 0


def test_the_gain_of_objectness_follows_the_area() -> None:
    head = registry.build("yolov5n", num_classes=3).head
    gains = {size: build_criterion(head, TrainConfig(imgsz=size))[1] for size in (640, (320, 1280), (640, 1280), 960)}
    assert gains[320, 1280] == gains[640]
    assert gains[640, 1280] == pytest.approx(gains[640] | {"obj": 2 * gains[640]["obj"]})
    assert gains[960]["obj"] == pytest.approx(1.5**2 * gains[640]["obj"])
