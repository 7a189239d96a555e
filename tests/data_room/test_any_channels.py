"""Augmentation, transforms and views of images with any number of channels, of 8 and 16 bits."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yoloyard.commands.sources import Source, images_of
from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.common.structures import Batch, Sample
from yoloyard.common.video import UnreadableError
from yoloyard.config.settings import AugmentConfig
from yoloyard.data.pixels import augment
from yoloyard.data.pixels.arrays import pixels_of
from yoloyard.data.pixels.transform import Transform
from yoloyard.data.pixels.view import viewed
from yoloyard.training.engine.multi_scale import resize

SPECS = [PixelSpec(channels, bits) for channels in (1, 2, 3, 5) for bits in (8, 16)]
BOX = np.array([[2, 3, 12, 15]], np.float32)


def drawn(spec: PixelSpec, seed: int = 0, height: int = 40, width: int = 56) -> Sample:
    """Noise with a box."""
    pixels = np.random.default_rng(seed).integers(0, spec.largest + 1, (height, width, spec.channels))
    return Sample(pixels.astype(spec.dtype), BOX.copy(), np.zeros(1, np.int64), np.zeros(1, bool), 0)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.channels != 3])
def test_other_channels_than_colours_change_by_their_brightness_alone(spec: PixelSpec) -> None:
    image = drawn(spec).image
    changed = image.copy()
    augment.adjust_colours(changed, np.array([0.1, 0.5, 0.3]), spec)
    assert np.abs(changed - (image * 1.3).clip(0, spec.largest)).max() <= 0.5


def test_three_lights_have_no_hue() -> None:
    lights = PixelSpec(3, files=("_a", "_b", "_c"))
    image = drawn(lights).image // 2
    changed = image.copy()
    augment.adjust_colours(changed, np.array([0.3, -0.9, 0.0]), lights)
    np.testing.assert_array_equal(changed, image)


def test_colours_of_16_bits_change_as_those_of_8() -> None:
    config, image = AugmentConfig(hsv_h=0.1, hsv_s=0.5, hsv_v=0.5), drawn(EIGHT_BITS).image
    gains = augment.draw_colours(config, np.random.default_rng(3))
    assert gains is not None
    deep, shallow = image * np.uint16(257), image.copy()
    augment.adjust_colours(deep, gains, PixelSpec(bits=16))
    augment.adjust_colours(shallow, gains)
    assert np.abs(deep / 257 - shallow).mean() < 2  # 8 bits know 180 hues
    assert np.abs(deep / 257 - shallow).max() < 12
    unchanged = image * np.uint16(257)
    augment.adjust_colours(unchanged, np.zeros(3), PixelSpec(bits=16))
    assert np.abs(unchanged - image * 257.0).max() <= 1


@pytest.mark.parametrize("spec", SPECS)
def test_each_channel_is_augmented_as_if_it_were_alone(spec: PixelSpec) -> None:
    one = PixelSpec(1, spec.bits)
    samples = [drawn(spec, seed) for seed in range(4)]
    config = AugmentConfig(degrees=10, shear=5, perspective=0.0005, flipud=0.5)

    def augmented(samples: list[Sample], config: AugmentConfig) -> np.ndarray:
        random = np.random.default_rng(7)
        canvas = 2 * 48, 2 * 64
        placed = augment.mosaic(samples, (48, 64), random)
        matrix, zoom = augment.draw_affine(*canvas, (48, 64), config, random)
        sample = augment.place(placed, canvas, matrix, zoom, (48, 64))
        sample = augment.mixup(sample, augment.place(placed[:1], canvas, matrix, zoom, (48, 64)), random)
        return augment.flip(sample, config, random).image

    for settings in (config, AugmentConfig()):
        whole = augmented(samples, settings)
        assert whole.dtype == spec.dtype
        for channel in range(spec.channels):
            parts = [
                Sample(np.ascontiguousarray(s.image[..., [channel]]), s.boxes_xyxy, s.labels, s.ignore, 0)
                for s in samples
            ]
            assert parts[0].image.dtype == one.dtype
            # OpenCV moves noise of one channel and of four by positions that differ by 1/32 of a pixel.
            apart = augmented(parts, settings)[..., 0] - whole[..., channel].astype(float)
            assert np.abs(apart).max() <= spec.largest / 32


@pytest.mark.parametrize("spec", SPECS)
def test_batches_keep_their_type_where_their_size_changes(spec: PixelSpec) -> None:
    image = torch.from_numpy(np.full((2, 32, 32, spec.channels), spec.largest, spec.dtype)).permute(0, 3, 1, 2)
    batch = Batch(image, torch.zeros(2, 1, 4), torch.zeros(2, 1).long(), torch.zeros(2, 1).bool(), [0, 1], [None] * 2)
    resized = resize(batch, 1.5, 16).images
    assert (resized.dtype, *resized.shape) == (image.dtype, 2, spec.channels, 48, 48)
    assert (resized.float() == spec.largest).all()


@pytest.mark.parametrize("spec", SPECS)
def test_views_are_rgb_of_8_bits(spec: PixelSpec) -> None:
    image = drawn(spec).image
    seen, upper = viewed(image), image if spec.bits == 8 else image // 256
    assert (seen.dtype, seen.shape, seen.flags.c_contiguous) == (np.uint8, (40, 56, 3), True)
    for channel in range(3):
        np.testing.assert_array_equal(seen[..., channel], upper[..., channel if spec.channels >= 3 else 0])


@pytest.mark.parametrize("spec", SPECS)
def test_a_transform_gets_the_image_as_it_is(spec: PixelSpec) -> None:
    sample, seen = drawn(spec), []

    def mirror(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.append(image)
        return image[:, ::-1], boxes, labels

    found = Transform(mirror)(sample, np.random.default_rng(0), 1, Path("a.png"))
    np.testing.assert_array_equal(seen[0], sample.image)
    np.testing.assert_array_equal(found.image, sample.image[:, ::-1])
    with pytest.raises(UserError, match=rf"a.png: its image must be a {sample.image.dtype} array \(height, width, "):
        Transform(lambda image, *rest: (image.astype(np.float32), *rest))(
            sample, np.random.default_rng(0), 1, Path("a.png")
        )


@pytest.mark.parametrize("spec", SPECS)
def test_pipelines_of_albumentations_keep_all_bits(spec: PixelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    albumentations = pytest.importorskip("albumentations")
    sample = drawn(spec)
    flips = Transform(albumentations.Compose([albumentations.VerticalFlip(p=1)], bbox_params=albumentations.BboxParams(
        format="pascal_voc", label_fields=["labels"]
    )))  # fmt: skip
    found = flips(sample, np.random.default_rng(0), 1, Path("a.png"))
    np.testing.assert_array_equal(found.image, sample.image[::-1])
    colours = Transform(albumentations.Compose([albumentations.CLAHE(p=1)]))
    if spec.channels in (1, 3):
        assert colours(sample, np.random.default_rng(0), 1, Path("a.png")).image.dtype == spec.dtype
    else:
        with pytest.raises(UserError, match=r"fails on a.png: TypeError: CLAHE .* expects 1-channel or 3-channel"):
            colours(sample, np.random.default_rng(0), 1, Path("a.png"))


RGB = drawn(EIGHT_BITS).image
DEEP_GREY = PixelSpec(1, 16, window=(100, 4000))


@pytest.mark.parametrize(
    ("given", "spec", "expected"),
    [
        (RGB, PixelSpec(1), cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)[..., None]),
        (RGB[..., 0], PixelSpec(1), RGB[..., :1]),
        (RGB[..., :1], PixelSpec(1, 16), RGB[..., :1] * np.uint16(257)),
        (RGB, PixelSpec(3, 16), RGB * np.uint16(257)),
        (np.dstack((RGB, np.zeros_like(RGB[..., 0]))), PixelSpec(3, 16), np.full(RGB.shape, 114 * 257, np.uint16)),
        (drawn(PixelSpec(5, 16)).image, PixelSpec(5, 16), drawn(PixelSpec(5, 16)).image),
        (torch.from_numpy(drawn(PixelSpec(5)).image), PixelSpec(5), drawn(PixelSpec(5)).image),
        (RGB, PixelSpec(3, files=("_a", "_b", "_c")), RGB),
        (np.array([[100, 4000, 50, 2050]], np.uint16), DEEP_GREY, np.array([[[0], [65535], [0], [32768]]], np.uint16)),
    ],
)
def test_arrays_become_what_a_file_with_their_values_becomes(given: Any, spec: PixelSpec, expected: np.ndarray) -> None:
    found = pixels_of(given, spec)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == spec.dtype


@pytest.mark.parametrize(
    ("given", "spec", "line"),
    [
        (RGB, PixelSpec(5), r"\(height, width, 5\), not \(40, 56, 3\) \(the network takes 5 channels, last\)"),
        (RGB[..., 0], PixelSpec(3, files=("_a", "_b", "_c")), r"\(height, width, 3\), not \(40, 56, 1\)"),
        (RGB.transpose(2, 0, 1), PixelSpec(1), r"not \(3, 40, 56\) \(channels first"),
        (RGB / 255, PixelSpec(5), "uint8 or uint16, not float64"),
    ],
)
def test_arrays_of_other_channels_are_refused(given: Any, spec: PixelSpec, line: str) -> None:
    with pytest.raises(UserError, match=line):
        pixels_of(given, spec)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (PixelSpec(5), "the network takes images of 5 channels: save them as image files"),
        (DEEP_GREY, "the network takes images of values from 100 to 4000: save them"),
    ],
)
def test_frames_of_a_camera_are_refused_where_they_say_too_little(spec: PixelSpec, line: str) -> None:
    with pytest.raises(UnreadableError, match=line):
        next(images_of(Source("0", "camera0.mp4", is_video=True), spec))
