"""Augmentation for inspection lines: defects of other images, light, blur along the belt, noise of the sensor, turns.

All of it is off unless it is asked for. Shapes: H W pixels, n boxes. Images have any number of channels, uint8 or
uint16. All randomness comes from the argument `random`; what is off draws nothing from it.
"""

import math
from dataclasses import replace
from functools import cache

import cv2
import numpy as np

from yoloyard.common.structures import Sample
from yoloyard.config.settings import AugmentConfig

MOST_PASTED = 3  # defects of the other image
MOST_SHIFTED = 0.1  # of the image's sides: how far a defect comes from where it was in its own image
FEATHER = 0.2  # of a defect's shorter side: the width of the edge in which it fades into the other image
MIN_FEATHER_PIXELS = 2
MOST_APART = 1 / 8  # of full brightness: how much the surroundings may differ in any channel
READ_SHARE = 0.2  # of the noise of a white pixel, as variance: what a black one has, too
HIGHLIGHT_PROBABILITY = 0.5
HIGHLIGHT_RADIUS = 0.03, 0.15  # standard deviation of the spot, as a share of the image's shorter side


def copy_paste(sample: Sample, partner: Sample, random: np.random.Generator) -> Sample:
    """The image with up to MOST_PASTED defects of `partner`, each where it may be; the same sample if none may be.

    A camera of a line sees each part in about the same place. So a defect comes to the place, relative to the image's
    sides, that it had in its own image, moved by at most MOST_SHIFTED, and only where its surroundings are about as
    bright there as here; the rest of that difference is added to it. It never covers a box and is never cut with a
    part of another one. One that touches the edge of its image may go on outside, and stays.
    The defect is pasted whole and fades out around its box, which is moved by whole pixels and stays as it was.
    Source: Ghiasi et al., "Simple Copy-Paste" (arXiv 2012.07177), for boxes instead of masks.
    """
    image, boxes, chosen = sample.image, sample.boxes_xyxy, []
    height, width = partner.image.shape[:2]
    largest = np.iinfo(image.dtype).max
    for number in random.permutation(len(partner.labels))[:MOST_PASTED].tolist():
        box = partner.boxes_xyxy[number]
        x1, y1 = np.floor(box[:2]).astype(int).tolist()
        x2, y2 = np.ceil(box[2:]).astype(int).tolist()
        fade = max(MIN_FEATHER_PIXELS, round(FEATHER * min(x2 - x1, y2 - y1)))
        patch = np.array([x1 - fade, y1 - fade, x2 + fade, y2 + fade])
        move = np.array([_move(x1 + x2, width, image.shape[1], random), _move(y1 + y2, height, image.shape[0], random)])
        place = patch + np.tile(move, 2)
        others = np.delete(partner.boxes_xyxy, number, axis=0)
        if not (_is_free(patch, (height, width), others) and _is_free(place, image.shape[:2], boxes)):
            continue
        share = np.minimum(_ramp(y2 - y1, fade)[:, None], _ramp(x2 - x1, fade))[..., None]
        defect, under = (of[y : y + share.shape[0], x : x + share.shape[1]].astype(np.float32)
                         for of, (x, y) in ((partner.image, patch[:2]), (image, place[:2])))  # fmt: skip
        around = share[..., 0] < 1
        brighter = under[around].mean(axis=0) - defect[around].mean(axis=0)
        if np.abs(brighter).max() > MOST_APART * largest:
            continue
        if image is sample.image:
            image = image.copy()
        mixed = under + share * (defect + brighter - under)
        _write(image[place[1] : place[3], place[0] : place[2]], mixed)
        boxes = np.concatenate((boxes, box[None] + np.tile(move, 2).astype(np.float32)))
        chosen.append(number)
    if not chosen:
        return sample
    return replace(
        sample,
        image=image,
        boxes_xyxy=boxes,
        labels=np.concatenate((sample.labels, partner.labels[chosen])),
        ignore=np.concatenate((sample.ignore, partner.ignore[chosen])),
        source_ids=sample.source_ids + partner.source_ids,
    )


def _move(both_ends: int, size: int, new_size: int, random: np.random.Generator) -> int:
    """By how many pixels a box with these ends, along one axis, is moved from one image to another."""
    return round((both_ends / 2 / size + random.uniform(-MOST_SHIFTED, MOST_SHIFTED)) * new_size - both_ends / 2)


def _is_free(patch: np.ndarray, shape: tuple[int, ...], boxes: np.ndarray) -> bool:
    """Is the `patch` xyxy inside an image of `shape` (H, W), and none of `boxes` (n, 4) in it?"""
    is_inside = (patch[:2] >= 0).all() and (patch[2:] <= shape[1::-1]).all()
    meets = (np.minimum(boxes[:, 2:], patch[2:]) > np.maximum(boxes[:, :2], patch[:2])).all(axis=1)
    return bool(is_inside) and not meets.any()


def _ramp(size: int, fade: int) -> np.ndarray:
    """Shares of a pasted patch along one axis, (size + 2 * fade,): 1 in the middle, falling towards 0 outside."""
    slope = np.arange(1, fade + 1, dtype=np.float32) / (fade + 1)
    return np.concatenate((slope, np.ones(size, np.float32), slope[::-1]))


def rotate90(sample: Sample, config: AugmentConfig, random: np.random.Generator) -> Sample:
    """Turned by a random multiple of `rotate90` degrees; of 90, only where the image is square, else of 180.

    `rotate90` says the turns after which the part looks the same.
    """
    if config.rotate90 == "0":
        return sample
    height, width = sample.image.shape[:2]
    turns = int(random.integers(4)) if config.rotate90 == "90" and height == width else 2 * int(random.integers(2))
    boxes = sample.boxes_xyxy
    for _ in range(turns):  # a quarter to the left: the right edge becomes the upper one
        x1, y1, x2, y2 = boxes.T
        boxes, height, width = np.stack((y1, width - x2, y2, width - x1), axis=1), width, height
    return replace(sample, image=np.ascontiguousarray(np.rot90(sample.image, turns)), boxes_xyxy=boxes)


def expose(image: np.ndarray, config: AugmentConfig, random: np.random.Generator) -> None:
    """Change an image, in place, as light, a moving belt and the sensor would, in this order, rounding once."""
    if not (config.light or config.belt_blur or config.noise):
        return
    pixels = image.astype(np.float32)
    largest = float(np.iinfo(image.dtype).max)
    if config.light:
        pixels = light(pixels, largest, config.light, random)
    if config.belt_blur:
        pixels = belt_blur(pixels, random.uniform(0, config.belt_blur), config.belt_angle)
    if config.noise:
        pixels = sensor_noise(pixels, largest, random.uniform(0, config.noise), random)
    _write(image, pixels)


def light(pixels: np.ndarray, largest: float, strength: float, random: np.random.Generator) -> np.ndarray:
    """Pixels float32 (H, W, channels), 0..`largest`, lit unevenly.

    Towards a random side the brightness rises by up to `strength`, on the other it falls as much, so that the mean
    over the image's area stays. Half of the images get a highlight, too: a soft spot that is up to `strength` of the
    way to white.
    """
    height, width = pixels.shape[:2]
    angle, slope = random.uniform(0, 2 * math.pi), random.uniform(0, strength)
    y, x = (np.arange(side, dtype=np.float32) + 0.5 for side in (height, width))
    along = math.sin(angle) * (2 * y / height - 1)[:, None] + math.cos(angle) * (2 * x / width - 1)
    along *= slope / (abs(math.sin(angle)) + abs(math.cos(angle)))
    lit = pixels * (1 + along)[..., None]
    if random.random() < HIGHLIGHT_PROBABILITY:
        radius = random.uniform(*HIGHLIGHT_RADIUS) * min(height, width)
        spot_y, spot_x = (
            np.exp(-(((place - random.uniform(0, len(place))) / radius) ** 2) / 2).astype(np.float32)
            for place in (y, x)
        )
        spot = np.float32(random.uniform(0, strength)) * spot_y[:, None] * spot_x
        lit += (largest - lit) * spot[..., None]
    return lit


def belt_blur(pixels: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Pixels float32 (H, W, channels) of parts that move by `length` pixels while the shutter is open.

    `angle`: the belt's direction in degrees, 0 along the width, counted clockwise as it is seen. The mean stays, and
    so does the middle of whatever moves.
    """
    reach = math.ceil(length / 2)
    if not reach:
        return pixels
    steps = np.linspace(-length / 2, length / 2, 16 * reach + 1)
    x, y = reach + steps * math.cos(math.radians(angle)), reach + steps * math.sin(math.radians(angle))
    middle = np.arange(2 * reach + 1)
    # Each moment lights the four pixels around its place, by how near they are.
    near_x, near_y = (np.maximum(0, 1 - np.abs(place[:, None] - middle)) for place in (x, y))
    kernel = near_y.T @ near_x
    blurred = cv2.filter2D(pixels, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    return blurred.reshape(pixels.shape)


def sensor_noise(pixels: np.ndarray, largest: float, strength: float, random: np.random.Generator) -> np.ndarray:
    """Pixels float32 (H, W, channels), 0..`largest`, with shot and read noise; the mean stays but where it is cut off.

    `strength`: the standard deviation of a white pixel, as a share of `largest`. That of shot noise goes with the root
    of the brightness, that of read noise is the same everywhere. Source: EMVA 1288, section 2.3, without dark current.
    """
    normal = _normal_values()  # four times as quick as a new value for each pixel
    noise = normal.take(random.integers(0, len(normal), pixels.shape, np.uint16))
    variance = READ_SHARE + (1 - READ_SHARE) / largest * pixels.clip(0, largest)
    return pixels + np.float32(strength * largest) * np.sqrt(variance) * noise


@cache
def _normal_values() -> np.ndarray:
    """Values float32 (65536,) of a normal distribution with mean 0 and variance 1."""
    values = np.random.default_rng(0).standard_normal(2**16)
    return ((values - values.mean()) / values.std()).astype(np.float32)


def _write(image: np.ndarray, pixels: np.ndarray) -> None:
    """Round float32 `pixels` into `image`, uint8 or uint16 of the same shape."""
    image[...] = np.rint(pixels).clip(0, np.iinfo(image.dtype).max)
