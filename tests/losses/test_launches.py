"""How many kernels the losses launch, for which a GPU waits for the host, and how much memory that takes."""

import pytest
import torch
from torch import Tensor

from launches import Launches
from memory import LiveBytes
from yoloyard.config.settings import TrainConfig
from yoloyard.losses import build_criterion, task_aligned
from yoloyard.losses.assign import BYTES_OF_A_PAIR, assign
from yoloyard.models import registry
from yoloyard.models.detector import Detector

BATCH, SIZE, BOXES, CLASSES = 64, 640, 256, 80
CARD_OF_24_GB = int(23.5 * 2**30)  # bytes that are free on one before the first step
CARD_OF_8_GB = int(7.5 * 2**30)


def targets() -> tuple[Tensor, Tensor]:
    return (
        torch.empty(BATCH, BOXES, 4, device="meta"),
        torch.empty(BATCH, BOXES, dtype=torch.int64, device="meta"),
    )


def maps_of(detector: Detector) -> list[Tensor]:
    """What a forward in mixed precision gives for the batch."""
    return [
        torch.empty(BATCH, detector.head.outputs, SIZE // stride, SIZE // stride, device="meta", dtype=torch.bfloat16)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for stride in detector.strides
    ]


@pytest.mark.parametrize(
    ("model", "free_bytes", "most"),
    [
        ("yolo11n", CARD_OF_24_GB, 150),  # the smallest card on which this batch fits
        ("yolo11n", CARD_OF_8_GB, 290),
        ("yolov5n", CARD_OF_24_GB, 500),
        ("yolo26n", CARD_OF_24_GB, 320),
    ],
)
def test_assignment_and_loss_launch_few_kernels(model: str, free_bytes: int, most: int) -> None:
    with torch.device("meta"):
        detector = registry.build(model, num_classes=CLASSES)
    criterion, _ = build_criterion(detector.head, TrainConfig(), free_bytes=free_bytes)
    maps = maps_of(detector)
    criterion(maps, *targets())  # what is made once a shape
    with Launches(forbid_reads=True) as launches:
        criterion(maps, *targets())
    assert 0.8 * most < len(launches.names) <= most


def test_class_weights_cost_few_launches_more() -> None:
    with torch.device("meta"):
        detector = registry.build("yolo11n", num_classes=CLASSES)
    weights = torch.empty(CLASSES, device="meta")
    criterion = task_aligned.TaskAlignedLoss(detector.strides, CLASSES, weights, pairs_at_once=2**40)
    maps = maps_of(detector)
    criterion(maps, *targets())
    with Launches(forbid_reads=True) as launches:
        criterion(maps, *targets())
    assert len(launches.names) <= 155


@pytest.mark.parametrize("pairs_at_once", [2**22, 2**25, 2**40])
def test_a_pair_takes_no_more_memory_than_is_reckoned_with(pairs_at_once: int) -> None:
    points, batch = 8400, 16
    with LiveBytes() as memory:
        assign(
            torch.empty(batch, points, 4, device="meta"),
            torch.empty(batch, points, 1, device="meta"),
            torch.empty(points, 2, device="meta"),
            torch.empty(batch, BOXES, 4, device="meta"),
            torch.empty(batch, BOXES, dtype=torch.int64, device="meta"),
            pairs_at_once,
        )
    pairs = min(pairs_at_once, batch * points * BOXES)
    of_points_alone = 200 * batch * points
    assert 0.7 * pairs * BYTES_OF_A_PAIR < memory.peak < pairs * BYTES_OF_A_PAIR + of_points_alone


def test_the_share_of_the_loss_leaves_room_for_the_maps() -> None:
    with torch.device("meta"):
        detector = registry.build("yolo11n", num_classes=CLASSES)
    criterion, _ = build_criterion(detector.head, TrainConfig(), free_bytes=CARD_OF_8_GB)
    assert isinstance(criterion, task_aligned.TaskAlignedLoss)
    assert criterion.pairs_at_once * BYTES_OF_A_PAIR == pytest.approx(
        CARD_OF_8_GB * task_aligned.SHARE_OF_MEMORY, rel=1e-6
    )
