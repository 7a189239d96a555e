"""Values of a camera's files to pixels: depth, windows, percentiles; files of one, several and N channels."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.pixels.decode import decode_image
from yoloyard.data.pixels.depth import percentiles, to_pixels
from yoloyard.data.pixels.lights import files_of

RANDOM = np.random.default_rng(0)
DEEP = PixelSpec(channels=1, bits=16)


@pytest.mark.parametrize("depth", [10, 12, 14, 16])
def test_a_ramp_keeps_all_its_values_and_ends_at_the_brightest(depth: int) -> None:
    ramp = np.arange(2**depth, dtype=np.uint16).reshape(4, -1, 1)
    pixels = to_pixels(ramp, DEEP)
    assert pixels.dtype == np.uint16
    assert len(np.unique(pixels)) == 2**depth
    exact = ramp.astype(float) * 65535 / (2**depth - 1)
    assert np.abs(pixels - exact).max() <= 0.5
    assert (pixels.min(), pixels.max()) == (0, 65535)


def test_8_bit_files_fill_16_bits() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert (to_pixels(values, DEEP) == values.astype(np.uint16) * 257).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("low", "high"), [(100, 4000), (0, 65535), (0.5, 65534.5), (7, 8), (60000, 65535)])
def test_a_window_is_stretched_over_all_pixels(low: float, high: float, bits: int) -> None:
    spec = PixelSpec(channels=1, bits=bits, window=(low, high))
    values = np.arange(65536, dtype=np.uint16)
    pixels = to_pixels(values, spec)
    assert pixels.dtype == spec.dtype
    assert (pixels[values <= low] == 0).all()
    assert (pixels[values >= high] == spec.largest).all()
    inside = (values >= low) & (values <= high)
    exact = (values[inside] - low) / (high - low) * spec.largest
    assert np.abs(pixels[inside] - exact).max() <= 0.5
    if bits == 16:
        assert (np.diff(pixels[inside].astype(int)) > 0).all()  # values that differ stay different


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_percentiles_are_those_of_numpy(dtype: type, size: int) -> None:
    values: np.ndarray = RANDOM.integers(0, 200 if dtype == np.uint8 else 4000, size).astype(dtype)
    for window in ((0, 100), (1, 99), (12.5, 50)):
        assert percentiles(values, window) == pytest.approx(np.percentile(values, window))


def test_a_window_of_percentiles_is_that_of_all_channels_together() -> None:
    spec = PixelSpec(channels=2, bits=16, window=(2, 98), percent=True)
    values = RANDOM.integers(300, 3000, (40, 50, 2)).astype(np.uint16)
    low, high = np.percentile(values, (2, 98))
    exact = np.clip((values - low) / (high - low), 0, 1) * 65535
    assert np.abs(to_pixels(values, spec) - exact).max() <= 0.5
    assert (to_pixels(np.full((4, 4, 2), 300, np.uint16), spec) == 0).all()  # nothing to be stretched


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_of_n_channels_is_read_as_it_is(tmp_path: Path, dtype: type, channels: int, planes: bool) -> None:
    values: np.ndarray = RANDOM.integers(0, np.iinfo(dtype).max + 1, (20, 30, channels)).astype(dtype)
    stored = np.moveaxis(values, 2, 0) if planes else values
    layout = "separate" if planes else "contig"
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=layout, compression="zlib")
    spec = PixelSpec(channels=channels, bits=8 * values.itemsize)
    assert (decode_image(tmp_path / "a.tif", pixels=spec) == values).all()
    with pytest.raises(UserError, match=rf"a.tif: it has {channels} channels and must have 6"):
        decode_image(tmp_path / "a.tif", pixels=PixelSpec(channels=6))


def test_four_channels_are_no_transparency(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 65536, (20, 30, 4)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(values, cv2.COLOR_RGBA2BGRA))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        assert (decode_image(tmp_path / name, pixels=PixelSpec(channels=4, bits=16)) == values).all()


def test_three_channels_keep_16_bits_grey_and_transparency(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    alpha = np.full((20, 30), 65535, np.uint16)
    alpha[:, :10] = 0
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack((colours[..., ::-1], alpha)))
    seen = decode_image(tmp_path / "a.png", pixels=PixelSpec(bits=16))
    assert (seen[:, 10:] == colours[:, 10:]).all()
    assert (seen[:, :10] == 114 * 257).all()
    cv2.imwrite(str(tmp_path / "grey.png"), colours[..., 0])
    assert (decode_image(tmp_path / "grey.png", pixels=PixelSpec(bits=16)) == colours[..., :1]).all()
    planes = np.moveaxis(colours, 2, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    assert (decode_image(tmp_path / "planes.tif", pixels=PixelSpec(bits=16)) == colours).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_one_channel_makes_colours_grey(tmp_path: Path, suffix: str) -> None:
    colours = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    Image.fromarray(colours).save(tmp_path / f"a{suffix}")
    image = decode_image(tmp_path / f"a{suffix}", pixels=PixelSpec(channels=1))
    assert image.shape == (16, 24, 1)
    assert np.abs(image.astype(int) - round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).max() <= 1


def test_several_files_are_the_channels_of_one_image(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 4000, (20, 30, 3)).astype(np.uint16)
    values[0, 0] = 10, 900, 4000  # each file would have another depth: they have that of all
    spec = PixelSpec(channels=3, bits=16, files=("_a", "_b", "_c"))
    for channel, mark in enumerate(spec.files):
        cv2.imwrite(str(tmp_path / f"01{mark}.png"), values[..., channel] // (1 if channel == 2 else 8))
    values[..., :2] //= 8
    image = decode_image(tmp_path / "01_a.png", pixels=spec)
    assert (image == to_pixels(values, PixelSpec(channels=3, bits=16))).all()
    assert (image == decode_image(tmp_path / "01_b.png", pixels=spec)).all()  # any of them stands for the image
    cv2.imwrite(str(tmp_path / "01_b.png"), values[:-1, :, 1])
    with pytest.raises(UserError, match=r"01_b.png: it and .*01_a.png are one image and differ: 30x19 .* 30x20"):
        decode_image(tmp_path / "01_a.png", pixels=spec)
    (tmp_path / "01_b.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*01_b.png: No such file"):
        decode_image(tmp_path / "01_a.png", pixels=spec)
    (tmp_path / "01_c.png").rename(tmp_path / "01.png")
    with pytest.raises(UserError, match=r"01.png: its name has none of _a, _b, _c"):
        decode_image(tmp_path / "01.png", pixels=spec)


@pytest.mark.parametrize(
    ("path", "files", "found"),
    [
        ("/x/01_b.png", ("_a", "_b"), ["/x/01_a.png", "/x/01_b.png"]),
        ("/x_b/part_a_7_b.png", ("_a", "_b"), ["/x_b/part_a_7_a.png", "/x_b/part_a_7_b.png"]),  # the last one
        ("/x/01_10.png", ("_1", "_10"), ["/x/01_1.png", "/x/01_10.png"]),  # the longer one
        ("/x/L2_01.bmp", ("L1_", "L2_"), ["/x/L1_01.bmp", "/x/L2_01.bmp"]),
        ("/x/top/y/01.bmp", ("top/", "left/"), ["/x/top/y/01.bmp", "/x/left/y/01.bmp"]),
        ("/laptop/left/1.bmp", ("top/", "left/"), ["/laptop/top/1.bmp", "/laptop/left/1.bmp"]),
        ("/x/01b.bmp", ("a", "b"), ["/x/01a.bmp", "/x/01b.bmp"]),  # the suffix is no part of the name
        ("/x/01.png", ("_a", "_b"), ["/x/01.png"]),
        ("/x/01_b.png", (), ["/x/01_b.png"]),
    ],
)
def test_which_files_belong_together(path: str, files: tuple[str, ...], found: list[str]) -> None:
    assert files_of(Path(path), files) == list(map(Path, found))
