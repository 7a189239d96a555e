"""What is done to an image and its boxes between decoding and the batch.

Shapes: H W pixels, n boxes. Boxes are xyxy in continuous pixels: pixel i covers i to i + 1. All randomness comes from
the argument `random`. The published augmentation of YOLOv8 and later: mosaic, affine, HSV, flips.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from yoloyard.common.image_size import ImageSize, shape_of
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.common.structures import ImageTransform, Sample
from yoloyard.config.settings import AugmentConfig
from yoloyard.data.pixels import channels

# A box stays after the affine step if enough of it is left to be recognised.
MIN_BOX_SIDE_PIXELS = 2.0
MIN_VISIBLE_AREA = 0.10  # of its area before
MAX_ASPECT_RATIO = 100.0
MIN_DEPTH = 1e-3  # of a point with perspective; keeps the divisor away from 0

STRIP_ROWS = 64


def resized_shape(height: int, width: int, imgsz: ImageSize | None) -> tuple[int, int]:
    """Height and width of an image that is resized to just fit into `imgsz`, rounded up; as it is without one."""
    if imgsz is None:
        return height, width
    most_height, most_width = shape_of(imgsz)
    ratio = min(most_height / height, most_width / width)
    return min(math.ceil(height * ratio), most_height), min(math.ceil(width * ratio), most_width)


def letterbox(
    image: np.ndarray, shape: tuple[int, int], enlarge: bool = True, original_shape: tuple[int, int] | None = None
) -> tuple[np.ndarray, ImageTransform]:
    """The image scaled to fit into `shape` (H, W) and centred on grey, and the transform back to the original.

    `original_shape` (H, W) is the image's size before any earlier resizing. If `enlarge` is false, the image is never
    made larger. An odd pixel of padding goes right and below.
    """
    height, width = image.shape[:2]
    new_height, new_width = _scaled(height, width, min(shape[0] / height, shape[1] / width, math.inf if enlarge else 1))
    if (new_height, new_width) != (height, width):
        image = channels.resize(image, (new_height, new_width))
    pad_y, pad_x = shape[0] - new_height, shape[1] - new_width
    top, left = pad_y // 2, pad_x // 2
    if pad_y or pad_x:
        image = channels.pad(image, top, pad_y - top, left, pad_x - left)
    height, width = original_shape or (height, width)
    return image, ImageTransform(height, width, new_width / width, new_height / height, left, top)


def minimal_shape(height: int, width: int, imgsz: ImageSize, stride: int = 32) -> tuple[int, int]:
    """The smallest letterbox (H, W) for an image fitted into `imgsz`: as little padding as the stride allows."""
    most_height, most_width = shape_of(imgsz)
    new_height, new_width = _scaled(height, width, min(most_height / height, most_width / width))
    return new_height + (most_height - new_height) % stride, new_width + (most_width - new_width) % stride


def _scaled(height: int, width: int, ratio: float) -> tuple[int, int]:
    return max(1, round(height * ratio)), max(1, round(width * ratio))


@dataclass(frozen=True)
class Placed:
    """An image and its position on a canvas."""

    sample: Sample
    left: int  # x of its top left corner, which may be outside the canvas
    top: int


def mosaic(samples: Sequence[Sample], imgsz: ImageSize, random: np.random.Generator) -> list[Placed]:
    """Four images whose corners meet near the middle of a canvas of twice `imgsz`.

    Order: top left, top right, bottom left, bottom right; the first gives the image id.
    Source: Bochkovskiy et al., "YOLOv4" (arXiv 2004.10934), section 3.3.
    """
    centre_y, centre_x = (int(random.uniform(side / 2, 3 * side / 2)) for side in shape_of(imgsz))
    placed = []
    for position, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        left = centre_x if position % 2 else centre_x - width
        top = centre_y if position // 2 else centre_y - height
        placed.append(Placed(sample, left, top))
    return placed


def joined(placed: Sequence[Placed], shape: tuple[int, int]) -> Sample:
    """All placed images as one of `shape` (H, W); they and their boxes are cut at its edges."""
    canvas = channels.blank_like(placed[0].sample.image, shape)
    for each in placed:
        x, y = max(each.left, 0), max(each.top, 0)
        part = each.sample.image[y - each.top : shape[0] - each.top, x - each.left : shape[1] - each.left]
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    boxes = _on_canvas(placed, shape)
    seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return _united([each.sample for each in placed], canvas, boxes, seen)


def _on_canvas(placed: Sequence[Placed], shape: tuple[int, int]) -> np.ndarray:
    """The boxes (n, 4) of all placed images in pixels of the canvas."""
    moved = [each.sample.boxes_xyxy + np.array([each.left, each.top] * 2, np.float32) for each in placed]
    return np.concatenate(moved).clip(0, [shape[1], shape[0]] * 2).astype(np.float32)


def _united(samples: Sequence[Sample], image: np.ndarray, boxes: np.ndarray, kept: np.ndarray | slice) -> Sample:
    """One sample of `image` with boxes (n, 4), which are those of all samples; only the `kept` (n,) ones stay."""
    return Sample(
        image,
        boxes[kept].astype(np.float32, copy=False),
        np.concatenate([sample.labels for sample in samples])[kept],
        np.concatenate([sample.ignore for sample in samples])[kept],
        samples[0].image_id,
        source_ids=tuple(source for sample in samples for source in sample.source_ids),
    )


def draw_affine(
    height: int, width: int, shape: tuple[int, int], config: AugmentConfig, random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A random matrix (3, 3) that moves an image onto an output of `shape` (H, W), and the zoom that is part of it.

    Steps: centre to the origin, perspective, rotation with zoom, shear, shift to about the middle of the output.
    """
    centre, perspective, rotation, shear, shift = (np.eye(3) for _ in range(5))
    centre[:2, 2] = -width / 2, -height / 2
    perspective[2, :2] = random.uniform(-config.perspective, config.perspective, 2)
    angle = math.radians(random.uniform(-config.degrees, config.degrees))
    zoom = random.uniform(1 - config.scale, 1 + config.scale)
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    rotation[:2, :2] = [[cosine, sine], [-sine, cosine]]
    shear[0, 1], shear[1, 0] = np.tan(np.radians(random.uniform(-config.shear, config.shear, 2)))
    shift[:2, 2] = random.uniform(0.5 - config.translate, 0.5 + config.translate, 2) * shape[::-1]
    return shift @ shear @ rotation @ perspective @ centre, float(zoom)


def warp(sample: Sample, matrix: np.ndarray, zoom: float, shape: tuple[int, int]) -> Sample:
    """Image and boxes moved by `matrix` (3, 3) onto an output of `shape` (H, W). Boxes with little left are dropped.

    `zoom` is the part of the matrix that only changes sizes; it doesn't count for how much of a box is left.
    """
    # OpenCV counts from the centres of pixels, the matrix from the image's edge: half a pixel there and back.
    to_edge = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    on_centres = np.linalg.inv(to_edge) @ matrix @ to_edge
    if not matrix[2, :2].any():
        on_centres[2] = 0, 0, 1
    image = channels.warp(sample.image, on_centres, shape)
    boxes = warp_boxes(sample.boxes_xyxy, matrix).clip(0, [shape[1], shape[0]] * 2)
    return _united([sample], image, boxes, _recognisable(boxes, sample.boxes_xyxy, zoom))


def place(
    placed: Sequence[Placed], canvas: tuple[int, int], matrix: np.ndarray, zoom: float, shape: tuple[int, int]
) -> Sample:
    """Images on a canvas of `canvas` (H, W), moved by `matrix` onto an output of `shape` (H, W), as `warp` does it.

    Without rotation, shear and perspective each image is cropped and resized directly into the output, in a fraction of
    the time. Crops have whole pixels, so images and their boxes are up to half a pixel away from the matrix.
    """
    if matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1]:
        return warp(joined(placed, canvas), matrix, zoom, shape)
    image = channels.blank_like(placed[0].sample.image, shape)
    moved = []
    for each in placed:
        height, width = each.sample.image.shape[:2]
        in_x, out_x, scale_x = _spans(each.left, width, canvas[1], matrix[0, 0], matrix[0, 2], shape[1])
        in_y, out_y, scale_y = _spans(each.top, height, canvas[0], matrix[1, 1], matrix[1, 2], shape[0])
        part = image[out_y, out_x]
        if part.size:
            channels.resize(each.sample.image[in_y, in_x], part.shape[:2], part)
        shift = np.array([out_x.start - in_x.start * scale_x, out_y.start - in_y.start * scale_y] * 2)
        boxes = each.sample.boxes_xyxy * np.array([scale_x, scale_y] * 2) + shift
        moved.append(boxes.clip([out_x.start, out_y.start] * 2, [out_x.stop, out_y.stop] * 2))
    boxes = np.concatenate(moved)
    kept = _recognisable(boxes, _on_canvas(placed, canvas), zoom)
    return _united([each.sample for each in placed], image, boxes, kept)


def _spans(corner: int, size: int, canvas: int, zoom: float, shift: float, length: int) -> tuple[slice, slice, float]:
    """Along one axis: which pixels of an image become which pixels of the output, and by what scale.

    The image has `size` pixels from `corner` of a `canvas` on, and what is seen of it is moved onto `length` pixels.
    """
    # A pixel of the output belongs to the image that has its centre, so that images neither overlap nor leave gaps.
    low, high = max(corner, 0), min(corner + size, canvas)
    start = min(max(math.ceil(low * zoom + shift - 0.5), 0), length)
    stop = min(max(math.ceil(high * zoom + shift - 0.5), start), length)
    first = min(max(round((start - shift) / zoom), low), high - 1)
    last = min(max(round((stop - shift) / zoom), first + 1), high)
    scale = (stop - start) / (last - first) if stop > start else zoom
    return slice(first - corner, last - corner), slice(start, stop), scale


def _recognisable(boxes: np.ndarray, before: np.ndarray, zoom: float) -> np.ndarray:
    """Which boxes (n, 4) have enough left, as bool (n,). `before` (n, 4) are the boxes before a change by `zoom`."""
    old_width, old_height = (before[:, 2:].astype(np.float64) - before[:, :2]).T
    area_before = old_width * old_height * zoom**2
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    kept = (width > MIN_BOX_SIDE_PIXELS) & (height > MIN_BOX_SIDE_PIXELS)
    kept &= width * height > MIN_VISIBLE_AREA * area_before
    kept &= np.maximum(width, height) < MAX_ASPECT_RATIO * np.minimum(width, height)
    return kept


def warp_boxes(boxes_xyxy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bounds (n, 4) of the moved corners of boxes (n, 4), float64, not clipped.

    With perspective only the part in front of the horizon counts; a box behind it becomes empty.
    """
    corners = np.ones((len(boxes_xyxy), 4, 3))
    corners[..., :2] = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    corners = corners @ matrix.T
    if not matrix[2, :2].any():
        return np.concatenate((corners[..., :2].min(axis=1), corners[..., :2].max(axis=1)), axis=1)
    # Where edges reach the horizon, (n, 4, 3) homogeneous; points nearer to it are far outside every output.
    following = np.roll(corners, -1, axis=1)
    depth, next_depth = corners[..., 2], following[..., 2]
    crossing = (depth > MIN_DEPTH) != (next_depth > MIN_DEPTH)
    share = (MIN_DEPTH - depth) / np.where(crossing, next_depth - depth, 1.0)
    on_horizon = corners + share[..., None] * (following - corners)
    on_horizon[..., 2] = MIN_DEPTH
    points = np.concatenate((corners, on_horizon), axis=1)
    in_front = np.concatenate((depth > MIN_DEPTH, crossing), axis=1)[..., None]
    points = points[..., :2] / np.where(in_front, points[..., 2:], 1.0)
    low = np.where(in_front, points, np.inf).min(axis=1)
    high = np.where(in_front, points, -np.inf).max(axis=1)
    return np.where(in_front.any(axis=1), np.concatenate((low, high), axis=1), 0.0)


def draw_colours(config: AugmentConfig, random: np.random.Generator) -> np.ndarray | None:
    """Random gains (3,) of hue, saturation and value, from -1 to 1 times those of the settings; None for no change."""
    gains = random.uniform(-1, 1, 3) * (config.hsv_h, config.hsv_s, config.hsv_v)
    return gains if config.hsv_h or config.hsv_s or config.hsv_v else None


def adjust_colours(image: np.ndarray, gains: np.ndarray, pixels: PixelSpec = EIGHT_BITS) -> None:
    """Turn the hue of an image by `gains[0]` of a circle, and scale saturation and value by 1 + the others, in place.

    Only colours have a hue and a saturation. Other images, and the lights of an image from several files, change by
    their brightness alone, all channels alike.
    """
    if not pixels.has_colours:
        flat = image.reshape(len(image), -1)
        cv2.addWeighted(flat, 1 + float(gains[2]), flat, 0, 0, dst=flat)  # clipped at the brightest value
        return
    levels = np.arange(256.0)
    hue, others = (levels + 180 * gains[0]) % 180, (levels * (1 + gains[1:, None])).clip(0, 255)
    tables = np.stack((hue, *others)).astype(np.uint8)
    # Strips stay in the processor's cache.
    for top in range(0, len(image), STRIP_ROWS):
        strip = image[top : top + STRIP_ROWS]
        if image.dtype == np.uint8:
            _adjust_8_bits(strip, tables)
        else:
            _adjust_16_bits(strip, gains)


def _adjust_8_bits(strip: np.ndarray, tables: np.ndarray) -> None:
    hsv = cv2.cvtColor(strip, cv2.COLOR_RGB2HSV)
    # A table for each plane is quicker than OpenCV's table of three channels.
    planes = cv2.split(hsv)
    for plane, table in zip(planes, tables, strict=True):
        cv2.LUT(plane, table, dst=plane)
    cv2.cvtColor(cv2.merge(planes, hsv), cv2.COLOR_HSV2RGB, dst=strip)


def _adjust_16_bits(strip: np.ndarray, gains: np.ndarray) -> None:
    hsv = cv2.cvtColor(strip / np.float32(65535), cv2.COLOR_RGB2HSV)  # 0..360, 0..1, 0..1
    hsv[..., 0] = (hsv[..., 0] + 360 * gains[0]) % 360
    hsv[..., 1:] = (hsv[..., 1:] * (1 + gains[1:])).clip(0, 1)
    strip[...] = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 65535).round()


def flip(sample: Sample, config: AugmentConfig, random: np.random.Generator, out: np.ndarray | None = None) -> Sample:
    """Flip up-down with probability `flipud`, left-right with `fliplr`. The image is written into `out` (H, W, 3)."""
    height, width = sample.image.shape[:2]
    upside_down, mirrored = random.random(2) < (config.flipud, config.fliplr)
    image, boxes = np.empty_like(sample.image) if out is None else out, sample.boxes_xyxy.copy()
    if upside_down or mirrored:
        cv2.flip(sample.image, -1 if upside_down and mirrored else int(mirrored), dst=image)
    else:
        np.copyto(image, sample.image)
    if upside_down:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    if mirrored:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return replace(sample, image=image, boxes_xyxy=boxes)


def mixup(sample: Sample, partner: Sample, random: np.random.Generator) -> Sample:
    """Two images of one size, blended about half and half, with the boxes of both.

    Source: Zhang et al., "mixup" (arXiv 1710.09412); shares by Beta(32, 32) as published for YOLO.
    """
    share = random.beta(32, 32)
    image = (sample.image * np.float32(share) + partner.image * np.float32(1 - share)).astype(sample.image.dtype)
    boxes = np.concatenate((sample.boxes_xyxy, partner.boxes_xyxy))
    return _united([sample, partner], image, boxes, slice(None))
