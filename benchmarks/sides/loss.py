"""Both sides of loss.py: the criterion's forward and backward on the same maps and boxes, made from a fixed seed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from turns import Turns

IMAGES, SIZE, CLASSES, STRIDES = 16, 640, 80, (8, 16, 32)


def main() -> None:
    who, boxes, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    turns = Turns()
    torch.set_num_threads(threads)
    work = {"ours": ours, "theirs": theirs}[who](*make_data(boxes))
    while turns.wait():
        began = time.perf_counter()
        work()
        turns.report(seconds=time.perf_counter() - began)


def make_data(count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Maps (B, 144, h, w) as of a network in training, boxes (B, M, 4) xyxy in pixels, labels (B, M)."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for stride in STRIDES:
        level = torch.randn(IMAGES, 64 + CLASSES, SIZE // stride, SIZE // stride, generator=generator)
        level[:, 64:] -= 5
        maps.append(level.to(memory_format=torch.channels_last))
    sizes = torch.rand(IMAGES, count, 2, generator=generator) ** 2 * 0.4 + 0.02
    corners = torch.rand(IMAGES, count, 2, generator=generator) * (1 - sizes)
    boxes = torch.cat((corners, corners + sizes), dim=2) * SIZE
    return maps, boxes, torch.randint(0, CLASSES, (IMAGES, count), generator=generator)


def ours(maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Callable[[], None]:
    """The task-aligned loss with the published gains."""
    from yoloyard.cpu.points_in_boxes import use_points_in_boxes
    from yoloyard.losses.task_aligned import TaskAlignedLoss

    criterion = use_points_in_boxes(TaskAlignedLoss(STRIDES, CLASSES))
    leaves = [level.requires_grad_() for level in maps]
    gains = {"box": 7.5, "cls": 0.5, "dfl": 1.5}

    def work() -> None:
        parts = criterion(leaves, boxes, labels)
        loss = torch.stack([gains[name] * sums.sum() / norms.sum() for name, (sums, norms) in parts.items()]).sum()
        (loss * IMAGES).backward()
        for level in leaves:
            level.grad = None

    return work


def theirs(maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Callable[[], None]:
    """The reference's criterion, as its network makes it."""
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    network = YOLO("yolo11n.yaml").model
    network.args = get_cfg()
    criterion = network.init_criterion()
    joined = torch.cat([level.flatten(2) for level in maps], dim=2)
    box_logits, class_logits = (part.contiguous().requires_grad_() for part in joined.split((64, CLASSES), dim=1))
    targets = {
        "batch_idx": torch.arange(IMAGES).repeat_interleave(labels.shape[1]).float(),
        "cls": labels.flatten()[:, None].float(),
        "bboxes": torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), 2).flatten(0, 1)
        / SIZE,
    }

    def work() -> None:
        loss, _ = criterion({"boxes": box_logits, "scores": class_logits, "feats": maps}, targets)
        loss.sum().backward()
        box_logits.grad = class_logits.grad = None

    return work


if __name__ == "__main__":
    main()
