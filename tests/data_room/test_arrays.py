"""What a program may hand over as an image, and what is said of the rest."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from yoloyard.common.errors import UserError
from yoloyard.data.pixels.arrays import is_one_image, pixels_of
from yoloyard.data.pixels.decode import decode_image

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
GREY = RGB[..., 0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (RGB[..., ::-1], RGB[..., ::-1]),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB.transpose(2, 0, 1).copy()).permute(1, 2, 0), RGB),
        (GREY, np.dstack((GREY,) * 3)),
        (GREY[..., None], np.dstack((GREY,) * 3)),
        (GREY.astype(np.uint16) * 257, np.dstack((GREY,) * 3)),
        (np.dstack((RGB, np.full_like(GREY, 255))), RGB),
        (np.dstack((RGB, np.zeros_like(GREY))), np.full_like(RGB, 114)),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), np.dstack((GREY,) * 3)),
        (Image.fromarray(np.dstack((RGB, np.zeros_like(GREY)))), np.full_like(RGB, 114)),
        (Image.fromarray(GREY).convert("LA"), np.dstack((GREY,) * 3)),
        (Image.fromarray(GREY.astype(np.uint16) * 257), np.dstack((GREY,) * 3)),
        (Image.fromarray(GREY > 127), np.dstack(((GREY > 127) * np.uint8(255),) * 3)),
        (Image.fromarray(RGB).convert("P"), np.asarray(Image.fromarray(RGB).convert("P").convert("RGB"))),
        (Image.fromarray(RGB).convert("CMYK"), np.asarray(Image.fromarray(RGB).convert("CMYK").convert("RGB"))),
    ],
)
def test_arrays_tensors_and_pil_images_are_taken(given: Any, expected: np.ndarray) -> None:
    assert is_one_image(given)
    found = pixels_of(given)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def test_a_pil_image_gives_the_pixels_of_its_file(tmp_path: Path) -> None:
    for name, image in (
        ("turned.jpg", Image.fromarray(RGB)),
        ("clear.png", Image.fromarray(np.dstack((RGB, GREY)))),
        ("deep.png", Image.fromarray(GREY.astype(np.uint16) * 16)),
    ):
        exif = image.getexif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        image.save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(pixels_of(opened), decode_image(tmp_path / name))
        np.testing.assert_array_equal(pixels_of(str(tmp_path / name)), pixels_of(tmp_path / name))


def cut(path: Path) -> Image.Image:
    path.write_bytes(cv2.imencode(".png", RGB)[1].tobytes()[:200])
    return Image.open(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "can't be NoneType None: give a path"),
        (b"\xff\xd8", "can't be bytes"),
        (memoryview(b"abc"), "can't be memoryview"),
        (7, "can't be int 7"),
        ({"image": RGB}, "can't be dict"),
        ([RGB], "can't be list"),
        (RGB / 255, r"uint8 or uint16, not float64 \(12, 16, 3\).*\(image \* 255\)"),
        (RGB > 1, "not bool"),
        (np.array([RGB, None], dtype=object), "not object"),
        (torch.rand(3, 12, 16, requires_grad=True), r"not torch.float32 \(3, 12, 16\)"),
        (torch.rand(12, 16, 3, dtype=torch.bfloat16), "not torch.bfloat16"),
        (torch.from_numpy(RGB.transpose(2, 0, 1).copy()), r"\(3, 12, 16\) \(channels first: image.permute\(1, 2, 0\)"),
        (RGB[None], r"\(1, 12, 16, 3\) \(several in one array: list\(images\)"),
        (RGB[..., :2], r"not \(12, 16, 2\)"),
        (np.uint8(3), r"can't be uint8"),
        (np.zeros((0, 10, 3), np.uint8), r"must have pixels, and \(0, 10, 3\) has none"),
        (np.zeros((0,), np.uint8), r"not \(0,\)"),
        (Image.new("F", (4, 4)), "not float32"),
        (Image.new("RGB", (0, 4)), "has none"),
        ("no.jpg", "cannot read the image no.jpg: No such file"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pixels_of(given)


def test_a_cut_file_that_pillow_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the PIL image"):
        pixels_of(cut(tmp_path / "cut.png"))


def test_lists_tuples_and_generators_are_several_images() -> None:
    assert not any(map(is_one_image, ([], (RGB, "a.jpg"), iter([RGB]), (each for each in [RGB]))))
    assert all(map(is_one_image, (None, "a.jpg", Path("a.jpg"), RGB, torch.from_numpy(RGB), {})))


def test_an_image_as_it_is_wanted_is_not_copied_and_a_read_only_one_can_be_written_after() -> None:
    assert np.shares_memory(pixels_of(RGB), RGB)
    read_only = RGB.copy()
    read_only.flags.writeable = False
    assert pixels_of(read_only).flags.writeable
    assert pixels_of(GREY).flags.writeable
