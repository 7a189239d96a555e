"""Batches of another size each: the sizes, and boxes that stay where the objects are."""

import dataclasses

import pytest
import torch

from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.training.engine.multi_scale import draw_side, largest_size, resize, vary_size


def batch_with_a_square(height: int = 64, width: int = 64) -> Batch:
    """Black, with a white square from 16 to 48 across and down."""
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8).to(memory_format=torch.channels_last)
    images[..., 16:48, 16:48] = 255
    boxes = torch.tensor([[[16.0, 16, 48, 48], [0, 0, 0, 0]]]).repeat(2, 1, 1)
    labels = torch.tensor([[0, -1]]).repeat(2, 1)
    return Batch(images, boxes, labels, torch.zeros(2, 2, dtype=torch.bool), [0, 1], [None, None], (0, 1))


def test_sides_are_multiples_of_the_stride_around_imgsz() -> None:
    sides = {draw_side(640, 32, 0, 0, number) for number in range(400)}
    assert sides == set(range(320, 961, 32))
    assert {draw_side(64, 64, 0, 0, number) for number in range(20)} == {64}
    # Drawn from seed, epoch and batch.
    assert [draw_side(640, 32, 1, 2, number) for number in range(20)] == [
        draw_side(640, 32, 1, 2, number) for number in range(20)
    ]
    others = {tuple(draw_side(640, 32, *drawn, number) for number in range(20)) for drawn in ((1, 2), (1, 3), (2, 2))}
    assert len(others) == 3


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_boxes_move_with_the_pixels(factor: float) -> None:
    resized = resize(batch_with_a_square(), factor, 32)
    side = int(64 * factor)
    assert resized.images.shape == (2, 3, side, side)
    assert resized.images.dtype == torch.uint8
    assert resized.images.is_contiguous(memory_format=torch.channels_last)
    assert resized.boxes[0, 0].tolist() == [16 * factor, 16 * factor, 48 * factor, 48 * factor]
    assert resized.boxes[0, 1].tolist() == [0, 0, 0, 0]
    ys, xs = torch.nonzero(resized.images[0, 0] > 127, as_tuple=True)
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == resized.boxes[0, 0].tolist()
    assert resized.source_ids == (0, 1)


def test_rectangular_batches_keep_to_the_stride_on_both_sides() -> None:
    resized = resize(batch_with_a_square(64, 96), 0.75, 32)
    assert resized.images.shape[2:] == (64, 96)  # 48 and 72, rounded up
    resized = resize(batch_with_a_square(64, 96), 0.5, 32)
    assert resized.images.shape[2:] == (32, 64)
    assert resized.boxes[0, 0].tolist() == pytest.approx([16 * 64 / 96, 8, 48 * 64 / 96, 24])


def test_only_on_request_and_without_a_look_at_the_device() -> None:
    batch = batch_with_a_square()
    assert vary_size(batch, TrainConfig(imgsz=64), 32, 0, 0) is batch
    asked = TrainConfig(imgsz=64, multi_scale=True)
    assert {vary_size(batch, asked, 32, 0, number).images.shape[2] for number in range(20)} == {32, 64, 96}
    on_meta = dataclasses.replace(batch, images=batch.images.to("meta"), boxes=batch.boxes.to("meta"))
    assert resize(on_meta, 0.5, 32).images.shape == (2, 3, 32, 32)


def test_a_height_and_a_width_keep_their_ratio_up_to_the_stride() -> None:
    asked, batch = TrainConfig(imgsz=(64, 160), multi_scale=True), batch_with_a_square(64, 160)
    drawn = {tuple(vary_size(batch, asked, 32, 0, number).images.shape[2:]) for number in range(60)}
    assert drawn == {(64, 96), (64, 128), (64, 160), (96, 192), (96, 224)}
    assert largest_size(asked, 32) == (96, 256)  # not below any of them
    assert largest_size(TrainConfig(imgsz=(64, 160)), 32) == (64, 160)
    assert largest_size(TrainConfig(imgsz=96, multi_scale=True), 32) == 160
