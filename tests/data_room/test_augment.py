"""Boxes stay on what they enclose, whatever is done to the image."""

import copy
import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yoloyard.common.structures import Sample
from yoloyard.config.settings import AugmentConfig
from yoloyard.data.pixels import augment

STILL = AugmentConfig(
    mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, degrees=0, translate=0, scale=0, shear=0, perspective=0, flipud=0, fliplr=0
)
COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]], np.uint8)

sides = st.integers(40, 64)
seeds = st.integers(0, 2**32 - 1)


def image(height: int, width: int, boxes: list[list[int]], colours: np.ndarray) -> Sample:
    """A black image with a filled rectangle of its own colour for each box."""
    image = np.zeros((height, width, 3), np.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes, colours, strict=True):
        image[y1:y2, x1:x2] = colour
    labels = np.arange(len(boxes), dtype=np.int64)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), labels, np.zeros(len(boxes), bool), 0)


def alone(sample: Sample) -> augment.Placed:
    """The image on a canvas of its own size."""
    return augment.Placed(sample, 0, 0)


def coloured(image: np.ndarray, config: AugmentConfig, random: np.random.Generator) -> np.ndarray:
    """The image with other colours."""
    changed, gains = image.copy(), augment.draw_colours(config, random)
    if gains is not None:
        augment.adjust_colours(changed, gains)
    return changed


def coloured_bounds(image: np.ndarray, colour: np.ndarray) -> np.ndarray | None:
    """xyxy bounds of the pixels that are nearer to `colour` than to black, grey or another colour."""
    others = np.concatenate((COLOURS, [[0, 0, 0], (114,) * 3]))
    distances = np.abs(image[:, :, None].astype(int) - others).sum(axis=-1)
    rows, columns = np.nonzero((others[distances.argmin(axis=-1)] == colour).all(axis=-1))
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@st.composite
def boxes_in(draw: st.DrawFn, height: int, width: int) -> list[int]:
    x1, y1 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    return [x1, y1, draw(st.integers(x1 + 6, width)), draw(st.integers(y1 + 6, height))]


@given(st.data(), seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_boxes_enclose_the_same_pixels_after_all_steps(data: st.DataObject, seed: int, with_mosaic: bool) -> None:
    """Images are masks here: what is found in the final image must be what the boxes say."""
    random, imgsz = np.random.default_rng(seed), 64
    shape = data.draw(st.sampled_from([(64, 64), (32, 96), (96, 64)]))
    config = dataclasses.replace(STILL, translate=0.3, scale=0.4, flipud=0.5, fliplr=0.5)
    samples = []
    for number in range(4 if with_mosaic else 1):
        height, width = data.draw(sides), data.draw(sides)
        box = data.draw(boxes_in(height, width))
        sample = image(height, width, [box], COLOURS[number : number + 1])
        sample.labels[:] = number
        samples.append(sample)
    placed = augment.mosaic(samples, imgsz, random) if with_mosaic else [alone(samples[0])]
    height, width = (2 * imgsz, 2 * imgsz) if with_mosaic else samples[0].image.shape[:2]
    matrix, zoom = augment.draw_affine(height, width, shape, config, random)
    sample = augment.place(placed, (height, width), matrix, zoom, shape)
    sample = augment.flip(sample, config, random)
    assert sample.image.shape == (*shape, 3)
    assert sample.boxes_xyxy.dtype == np.float32
    boxes = dict(zip(sample.labels.tolist(), sample.boxes_xyxy, strict=True))
    for number, colour in enumerate(COLOURS[: len(samples)]):
        seen = coloured_bounds(sample.image, colour)
        if number in boxes:
            assert seen is not None
            np.testing.assert_allclose(seen, boxes[number], atol=1.01)
        elif seen is not None:
            # Only little may be left of a box that was dropped.
            width, height = seen[2:] - seen[:2]
            area = np.prod(samples[number].boxes_xyxy[0, 2:] - samples[number].boxes_xyxy[0, :2])
            assert min(width, height) <= 3 or width * height <= (0.10 * 1.4**2 + 0.05) * area


@given(st.data(), seeds)
@settings(max_examples=60, deadline=None)
def test_moved_boxes_are_the_bounds_of_moved_masks(data: st.DataObject, seed: int) -> None:
    """A brute-force renderer: each point of a fine grid is led back, and is in the mask if it ends in the box."""
    height, width = data.draw(sides), data.draw(sides)
    box = data.draw(boxes_in(height, width))
    config = AugmentConfig(degrees=180, shear=20, perspective=0.002, translate=0.3, scale=0.5)
    matrix, _ = augment.draw_affine(height, width, (64, 64), config, np.random.default_rng(seed))
    (found,) = augment.warp_boxes(np.array([box], np.float32), matrix)
    step = 0.25
    axis = np.arange(-64, 128, step) + step / 2
    grid = np.stack([*np.meshgrid(axis, axis), np.ones((len(axis), len(axis)))], axis=-1)
    x, y, depth = np.moveaxis(grid @ np.linalg.inv(matrix).T, -1, 0)
    x, y = x / depth, y / depth
    inside = (box[0] <= x) & (x < box[2]) & (box[1] <= y) & (y < box[3])
    rows, columns = np.nonzero(inside)
    mask = np.array([axis[columns.min()], axis[rows.min()], axis[columns.max()], axis[rows.max()]])
    # Where a sharp corner lies between grid points it is missed by a little more than a step.
    np.testing.assert_allclose(found.clip(-64, 128), mask, atol=4 * step)


@given(st.data(), seeds)
@settings(max_examples=30, deadline=None)
def test_images_move_with_their_boxes_when_turned(data: st.DataObject, seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = data.draw(sides), data.draw(sides)
    box = data.draw(boxes_in(height, width))
    sample = image(height, width, [box], COLOURS[3:])
    config = dataclasses.replace(STILL, degrees=180, shear=10, perspective=0.001)
    # Shrunk, so that nothing of the image leaves the output.
    matrix, _ = augment.draw_affine(height, width, (128, 128), config, random)
    warped = augment.warp(sample, matrix, 1.0, (128, 128))
    seen = coloured_bounds(warped.image, COLOURS[3])
    assert seen is not None
    np.testing.assert_allclose(seen, warped.boxes_xyxy[0], atol=2.5)  # the tip of a corner is thinner than a pixel


def test_a_box_beyond_the_horizon_becomes_empty_and_one_across_it_stays_finite() -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 0], [-0.1, 0, 1.0]])  # the horizon is at x = 10
    behind, across = augment.warp_boxes(np.array([[11, 0, 12, 1], [5, 0, 15, 1]], np.float32), matrix)
    assert behind.tolist() == [0, 0, 0, 0]
    assert across[0] == pytest.approx(10)
    assert np.isfinite(across).all()
    assert across[2] > 1000


def test_without_variation_the_image_lies_in_the_middle() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    sample = Sample(image, np.array([[8, 4, 20, 30]], np.float32), np.array([1]), np.zeros(1, bool), 7)
    matrix, zoom = augment.draw_affine(32, 64, (64, 64), STILL, np.random.default_rng(0))
    warped = augment.warp(sample, matrix, zoom, (64, 64))
    assert (warped.image[16:48] == image).all()
    assert (warped.image[:16] == 114).all()
    assert (warped.image[48:] == 114).all()
    assert warped.boxes_xyxy.tolist() == [[8, 20, 20, 46]]
    assert (warped.labels.tolist(), warped.image_id) == ([1], 7)


def test_a_zoom_keeps_edges_exactly_where_boxes_say() -> None:
    sample = image(64, 64, [[8, 16, 40, 52]], COLOURS[3:])
    for zoom, sharp in ((0.5, [[4, 8, 20, 26]]), (2.0, [[16, 32, 80, 104]])):
        side = int(64 * zoom)
        warped = augment.warp(sample, np.diag([zoom, zoom, 1.0]), zoom, (side, side))
        assert warped.boxes_xyxy.tolist() == sharp
        x1, y1, x2, y2 = sharp[0]
        # At twice the size the edge runs over two pixels, half way down at the box's side.
        assert warped.image[y1, x1 : x1 + 1].mean() == pytest.approx(250 if zoom < 1 else 250 * 0.75**2, abs=3)
        assert warped.image[(y1 + y2) // 2, x1].mean() == pytest.approx(250 if zoom < 1 else 250 * 0.75, abs=3)
        assert warped.image[(y1 + y2) // 2, x2].mean() == pytest.approx(0 if zoom < 1 else 250 * 0.25, abs=3)


def test_boxes_of_which_little_is_left_are_dropped() -> None:
    boxes = [[10, 10, 30, 30], [-9, 10, 1.5, 30], [-90, 10, 9, 30], [-90, 10, 11, 30], [10, 10, 60, 10.4]]
    sample = Sample(
        np.zeros((64, 64, 3), np.uint8), np.array(boxes, np.float32), np.arange(5), np.zeros(5, bool), image_id=0
    )
    # Inside; 1.5 px wide after clipping; 9.1 % and 10.9 % of the area left; lower than 2 px.
    assert augment.warp(sample, np.eye(3), 1.0, (64, 64)).labels.tolist() == [0, 3]


@given(seeds, st.lists(st.tuples(sides, sides), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_a_mosaic_has_no_seams(seed: int, shapes: list[tuple[int, int]]) -> None:
    """Four parts of one smooth surface, cut where the mosaic joins them, come out as that surface again."""
    imgsz = 64
    draws = np.random.default_rng(seed)
    centre_y, centre_x = (int(draws.uniform(imgsz / 2, 3 * imgsz / 2)) for _ in range(2))
    y, x = np.mgrid[-64:192, -64:192]
    surface = np.repeat(((x + y) / 4 + 120)[..., None], 3, axis=-1).astype(np.uint8)
    samples = []
    for position, (height, width) in enumerate(shapes):
        top = 64 + (centre_y if position >= 2 else centre_y - height)
        left = 64 + (centre_x if position % 2 else centre_x - width)
        part = surface[top : top + height, left : left + width]
        samples.append(Sample(part, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), position))
    joined = augment.joined(augment.mosaic(samples, imgsz, np.random.default_rng(seed)), (128, 128))
    # Around the meeting point everything is covered by images.
    near = np.s_[max(centre_y - 40, 0) : centre_y + 40, max(centre_x - 40, 0) : centre_x + 40]
    assert (joined.image[near] == surface[64:192, 64:192][near]).all()
    assert joined.image_id == 0

    config = dataclasses.replace(STILL, degrees=45, scale=0.5)
    matrix, zoom = augment.draw_affine(128, 128, (imgsz, imgsz), config, draws)
    warped = augment.warp(joined, matrix, zoom, (imgsz, imgsz)).image[..., 0]
    # Each output pixel led back to the mosaic: the surface is flat, so interpolation finds its height there.
    grid = np.stack([*np.meshgrid(*[np.arange(imgsz) + 0.5] * 2), np.ones((imgsz, imgsz))], axis=-1)
    x, y = np.moveaxis(grid @ np.linalg.inv(matrix).T, -1, 0)[:2] - 0.5
    inside = (abs(x - centre_x) < 39) & (abs(y - centre_y) < 39) & (np.minimum(x, y) > 0) & (np.maximum(x, y) < 127)
    np.testing.assert_allclose(warped[inside], (x + y)[inside] / 4 + 120, atol=1.5)


def test_boxes_of_a_mosaic_are_cut_at_the_canvas() -> None:
    samples = [image(64, 64, [[0, 0, 64, 64]], COLOURS[:1]) for _ in range(4)]
    sample = augment.joined(augment.mosaic(samples, 32, np.random.default_rng(1)), (64, 64))
    assert sample.image.shape == (64, 64, 3)
    assert sample.boxes_xyxy.min() == 0
    assert sample.boxes_xyxy.max() == 64
    areas = np.prod(sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2], axis=1)
    assert areas.sum() == 64 * 64


@pytest.mark.parametrize(
    ("size", "shape", "enlarge", "scaled", "padding"),
    [
        ((480, 640), (640, 640), True, (480, 640), (80, 0)),
        ((427, 640), (640, 640), True, (427, 640), (106, 0)),  # 213 rows of grey: 106 above, 107 below
        ((427, 640), (448, 640), True, (427, 640), (10, 0)),
        ((240, 320), (640, 640), True, (480, 640), (80, 0)),
        ((240, 320), (640, 640), False, (240, 320), (200, 160)),
        ((1080, 1920), (640, 640), False, (360, 640), (140, 0)),
        ((5, 10), (11, 11), True, (6, 11), (2, 0)),  # 5.5 rounds to the even 6
        ((5, 10), (9, 9), True, (4, 9), (2, 0)),  # 4.5 to the even 4
        ((1, 1000), (64, 64), True, (1, 64), (31, 0)),  # never nothing
        ((333, 500), (640, 640), True, (426, 640), (107, 0)),  # these four: MultimediaTechLab's YOLOv9
        ((425, 640), (640, 640), True, (425, 640), (107, 0)),
        ((500, 375), (640, 640), True, (640, 480), (0, 80)),
        ((720, 1280), (640, 640), True, (360, 640), (140, 0)),
    ],
)
def test_letterbox_has_the_published_numbers(
    size: tuple[int, int], shape: tuple[int, int], enlarge: bool, scaled: tuple[int, int], padding: tuple[int, int]
) -> None:
    image = np.full((*size, 3), 7, np.uint8)
    boxed, transform = augment.letterbox(image, shape, enlarge)
    assert boxed.shape == (*shape, 3)
    top, left = padding
    assert (boxed[top : top + scaled[0], left : left + scaled[1]] == 7).all()
    assert (boxed == 114).all(axis=-1).sum() == shape[0] * shape[1] - scaled[0] * scaled[1]
    assert (transform.pad_top, transform.pad_left) == padding
    assert transform.scale_y * size[0] == pytest.approx(scaled[0])
    assert transform.scale_x * size[1] == pytest.approx(scaled[1])


@given(st.integers(10, 3000), st.integers(10, 3000))
def test_the_minimal_letterbox_pads_less_than_a_stride(height: int, width: int) -> None:
    shape = augment.minimal_shape(height, width, 640)
    assert max(shape) == 640
    assert all(side % 32 == 0 for side in shape)
    ratio = 640 / max(height, width)
    assert all(0 <= side - max(1, round(old * ratio)) < 32 for side, old in zip(shape, (height, width), strict=True))


@given(st.integers(10, 300), st.integers(10, 300), st.integers(2, 6))
@settings(deadline=None)
def test_the_transform_leads_back_to_the_original(height: int, width: int, strides: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    shape = augment.resized_shape(height, width, 32 * strides)
    resized = cv2.resize(image, shape[::-1])
    assert max(resized.shape) == 32 * strides
    _, transform = augment.letterbox(resized, (32 * strides + 32,) * 2, enlarge=False, original_shape=(height, width))
    corners = np.array([0, 0, width, height])
    in_batch = corners * ([transform.scale_x, transform.scale_y] * 2) + [transform.pad_left, transform.pad_top] * 2
    assert in_batch[2] - in_batch[0] == pytest.approx(resized.shape[1])
    back = transform.to_original(torch.tensor(in_batch)[None])
    np.testing.assert_allclose(back[0], corners, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (480, 640)), ((375, 500), (480, 640)), ((1000, 333), (640, 214)), ((20, 10), (640, 320))],
)
def test_loaded_images_have_their_long_side_at_imgsz(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert augment.resized_shape(*size, 640) == expected


def test_hue_is_turned_and_saturation_and_value_are_scaled() -> None:
    hsv = np.array([[[20, 200, 100], [170, 100, 200], [90, 0, 50]]], np.uint8)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    start = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)  # what 8 bits keep of it
    for seed in range(20):
        configs = (
            dataclasses.replace(STILL, hsv_h=0.5),
            dataclasses.replace(STILL, hsv_s=0.5),
            dataclasses.replace(STILL, hsv_v=0.5),
        )
        for channel, config in enumerate(configs):
            gain = 0.5 * np.random.default_rng(seed).uniform(-1, 1, 3)[channel]
            expected = start.copy()
            if channel == 0:
                expected[..., 0] = (start[..., 0] + 180 * gain) % 180
            else:
                expected[..., channel] = (start[..., channel] * (1 + gain)).clip(0, 255)
            changed = coloured(image, config, np.random.default_rng(seed))
            np.testing.assert_array_equal(changed, cv2.cvtColor(expected.astype(np.uint8), cv2.COLOR_HSV2RGB))


def test_no_colour_change_is_none() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert (coloured(image, STILL, np.random.default_rng(0)) == image).all()


def test_flips_turn_image_and_boxes() -> None:
    sample = image(40, 60, [[5, 2, 25, 12]], COLOURS[:1])
    both = dataclasses.replace(STILL, flipud=1, fliplr=1)
    flipped = augment.flip(copy.deepcopy(sample), both, np.random.default_rng(0))
    assert flipped.boxes_xyxy.tolist() == [[35, 28, 55, 38]]
    assert (flipped.image == sample.image[::-1, ::-1]).all()
    assert (augment.flip(sample, STILL, np.random.default_rng(0)).image == sample.image).all()


def test_mixup_blends_about_half_and_half_and_keeps_all_boxes() -> None:
    white, black = image(40, 40, [[0, 0, 40, 40]], COLOURS[3:]), image(40, 40, [[1, 1, 9, 9]], COLOURS[:1])
    black.image[:] = 0
    shares = []
    for seed in range(50):
        mixed = augment.mixup(white, black, np.random.default_rng(seed))
        assert mixed.boxes_xyxy.tolist() == [[0, 0, 40, 40], [1, 1, 9, 9]]
        shares.append(mixed.image[0, 0, 0] / 250)
    assert 0.45 < np.mean(shares) < 0.55
    assert 0.03 < np.std(shares) < 0.1  # Beta(32, 32) spreads by 0.062
