"""Bytes to pixels, compared with pillow: orientations, depths, transparency, damage; sizes without decoding."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.pixels.channels import background
from yoloyard.data.pixels.decode import BACKGROUND, decode_image, read_size

# An image without symmetry: what is seen after each EXIF orientation was applied must be this.
SEEN = np.zeros((24, 40, 3), np.uint8)
SEEN[:12, :20], SEEN[:12, 20:], SEEN[12:, :20] = (250, 20, 20), (20, 250, 20), (20, 20, 250)

# How a camera stored it (EXIF 2.32, tag 0x0112), told without the decoder's own words.
STORED = {
    1: SEEN,
    2: np.fliplr(SEEN),
    3: np.rot90(SEEN, 2),
    4: np.flipud(SEEN),
    5: SEEN.transpose(1, 0, 2),
    6: np.rot90(SEEN, 1),  # turned clockwise to be seen, so stored counter-clockwise
    7: np.rot90(SEEN, 2).transpose(1, 0, 2),
    8: np.rot90(SEEN, -1),
}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
DEEP = np.arange(960, dtype=np.uint16).reshape(24, 40)  # grey levels for images of 16 bit
TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def save(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    """Written by pillow, in the format of the path's suffix."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(path, **options)
    return path


def encode(rgb: np.ndarray, form: str, **options: Any) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(target, form, **options)
    return target.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def tiff(
    pixels: np.ndarray, photometric: int, tags: dict[int, int] | None = None, order: str = "<", big: bool = False
) -> bytes:
    """A TIFF of one uncompressed strip, for what pillow doesn't write."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    content = pixels.astype(pixels.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    fields = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [1], 262: [photometric]}
    fields |= {277: [channels], 278: [height], 279: [len(content)], 284: [1]}
    fields |= {tag: [value] for tag, value in (tags or {}).items()}
    kind, inline = (16, 8) if big else (4, 4)
    code = TIFF_TYPES[kind]
    magic = (43, 8, 0, 16) if big else (42, 8)
    start = struct.pack(order + ("HHHQ" if big else "HI"), *magic)
    start = (b"II" if order == "<" else b"MM") + start
    entry = struct.calcsize(f"{order}HH{code}") + inline
    directory_end = len(start) + (8 if big else 2) + entry * (len(fields) + 1) + inline
    extra_length = sum(len(values) * inline for values in fields.values() if len(values) > 1)
    fields[273] = [directory_end + extra_length]
    rows, extra = b"", b""
    for tag, values in sorted(fields.items()):
        where = values if len(values) == 1 else [directory_end + len(extra)]
        extra += struct.pack(f"{order}{len(values)}{code}", *values) if len(values) > 1 else b""
        rows += struct.pack(f"{order}HH{code}{code}", tag, kind, len(values), *where)
    count = struct.pack(order + ("Q" if big else "H"), len(fields))
    return start + count + rows + bytes(inline) + extra + content


def composed(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Over the background, in floating point."""
    share = alpha[..., None] / 255
    return rgb * share + BACKGROUND * (1 - share)


def difference(image: np.ndarray, expected: np.ndarray) -> float:
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.shape[2] == 3
    return float(np.abs(image.astype(float) - expected).max())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "late.PNG", "WEBP", "TIFF", "grey16.TIFF", "big-endian.TIFF"])
def test_each_orientation_is_seen_the_same(tmp_path: Path, form: str, orientation: int) -> None:
    stored, seen = STORED[orientation], SEEN.astype(float)
    if form == "JPEG":
        data = encode(stored, form, exif=exif(orientation), quality=95, subsampling=0)
    elif form == "WEBP":
        data = encode(stored, form, exif=exif(orientation), lossless=True)
    elif form == "PNG":
        data = encode(stored, form, exif=exif(orientation))
    elif form == "late.PNG":  # the block may follow the pixels
        data, block = encode(stored, "PNG"), exif(orientation).tobytes().removeprefix(b"Exif\0\0")
        data = data[:-12] + struct.pack(">I", len(block)) + b"eXIf" + block + b"\0\0\0\0" + data[-12:]
    elif form == "TIFF":
        data = encode(stored, form, tiffinfo={274: orientation})
    elif form == "grey16.TIFF":
        data, seen = tiff(stored[..., 0].astype(np.uint16) * 257, 1, {274: orientation}), SEEN[..., :1].astype(float)
    else:
        data = tiff(stored, 2, {274: orientation}, ">")
    file = tmp_path / "image"
    file.write_bytes(data)
    image = decode_image(file)
    assert image.shape == SEEN.shape
    assert read_size(file) == (24, 40)
    # JPEG blurs the edges between the colours
    away = (slice(2, None, 7), slice(2, None, 7)) if form == "JPEG" else (slice(None), slice(None))
    assert np.abs(image[away] - seen[away]).max() <= (4 if form == "JPEG" else 0)
    grey = decode_image(file, pixels=PixelSpec(channels=1))[..., 0]
    assert np.abs(grey[away].astype(int) - cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[away]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_is_the_mean_of_its_pixels_turned_as_the_whole_is(
    tmp_path: Path, reduction: int, orientation: int
) -> None:
    smooth = cv2.resize(NOISE[:8, :8], (100, 61), interpolation=cv2.INTER_CUBIC)
    file = tmp_path / "image.jpg"
    file.write_bytes(encode(smooth, "JPEG", exif=exif(orientation), quality=95, subsampling=0))
    whole, reduced = decode_image(file), decode_image(file, reduction)
    assert reduced.shape[:2] == tuple(-(-side // reduction) for side in whole.shape[:2])  # rounded up
    height, width = (side // reduction for side in whole.shape[:2])
    rows, columns = slice(whole.shape[0] % reduction if orientation in (3, 4, 7, 8) else 0, None), slice(None)
    if orientation in (2, 3, 6, 7):
        columns = slice(whole.shape[1] % reduction, None)
    inner = whole[rows, columns][: height * reduction, : width * reduction].astype(float)
    means = inner.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3))
    top = reduced.shape[0] - height if rows.start else 0
    left = reduced.shape[1] - width if columns.start else 0
    assert np.abs(reduced[top : top + height, left : left + width] - means).mean() < 2


def test_only_jpegs_are_reduced(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.jpg", Image.fromarray(NOISE).convert("L"))
    assert decode_image(grey, 2).shape == (32, 32, 3)
    assert decode_image(save(tmp_path / "image.png", NOISE), 2).shape == NOISE.shape


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_images_have_pillows_pixels(tmp_path: Path, suffix: str, mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    file = save(tmp_path / f"image{suffix}", image, **({"lossless": True} if suffix == ".webp" else {}))
    assert difference(decode_image(file), np.array(image.convert("RGB"))) == 0
    assert read_size(file) == (64, 64)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpegs_have_pillows_pixels(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    smooth = cv2.resize(NOISE[:8, :8], (50, 30), interpolation=cv2.INTER_CUBIC)
    file = save(tmp_path / "image.jpg", Image.fromarray(smooth).convert(mode), **options)
    assert difference(decode_image(file), np.array(Image.open(file).convert("RGB"))) <= 2
    assert read_size(file) == (30, 50)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs_have_pillows_pixels(tmp_path: Path, compression: str) -> None:
    file = save(tmp_path / "image.tif", NOISE, compression=compression)
    assert difference(decode_image(file), NOISE) == 0


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_converted_as_pillow_does(tmp_path: Path, suffix: str) -> None:
    """Without a colour profile, red = 255 - cyan - black and so on; at most 3 of 255 levels apart."""
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[:16, :16], ink[:16, 16:], ink[16:, :16], ink[16:, 16:] = (0, 250, 9, 0), (99, 0, 40, 30), (8, 4, 0, 200), 7
    image = Image.fromarray(ink, "CMYK")
    file = save(tmp_path / f"image{suffix}", image, **({"quality": 100} if suffix == ".jpg" else {}))
    assert difference(decode_image(file), np.array(image.convert("RGB"))) <= 3


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparent_pixels_show_the_grey_of_the_padding(tmp_path: Path, suffix: str) -> None:
    assert background(np.dtype(np.uint8)) == BACKGROUND == 114
    alpha = np.arange(64 * 64).reshape(64, 64).astype(np.uint8)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    file = save(tmp_path / f"image{suffix}", np.dstack((NOISE, alpha)), **options)
    # libtiff multiplies with alpha in 8 bit, so a TIFF may be off by one more level
    assert difference(decode_image(file), composed(NOISE, alpha)) <= (1.5 if suffix == ".tif" else 0.51)
    assert (decode_image(file)[alpha == 0] == BACKGROUND).all()
    assert (decode_image(file)[alpha == 255] == NOISE[alpha == 255]).all()


def test_a_tiff_says_what_its_fourth_channel_is(tmp_path: Path) -> None:
    file, alpha = tmp_path / "image.tif", np.full((24, 40), 77, np.uint8)
    pixels = np.dstack((SEEN, alpha))
    file.write_bytes(tiff(pixels, 2, {338: 0}))  # something, but not alpha
    assert difference(decode_image(file), SEEN) == 0
    file.write_bytes(tiff(np.dstack((SEEN // 4, alpha)), 2, {338: 1}))  # colours multiplied with it already
    assert difference(decode_image(file), SEEN // 4 + BACKGROUND * (1 - 77 / 255)) <= 0.51
    file.write_bytes(tiff(pixels.astype(np.uint16) * 257, 2, {338: 2}))
    assert difference(decode_image(file), composed(SEEN, np.array([[77]]))) <= 2
    cv2.imwrite(str(file), pixels[..., [2, 1, 0, 3]])  # OpenCV's own don't say it
    assert difference(decode_image(file), composed(SEEN, alpha)) <= 0.51


def test_grey_and_palettes_may_be_transparent(tmp_path: Path) -> None:
    grey = Image.fromarray(NOISE).convert("L")
    file = save(tmp_path / "grey-alpha.png", Image.merge("LA", (grey, Image.fromarray(NOISE[..., 1]))))
    levels = np.array(grey)
    assert difference(decode_image(file), composed(np.dstack([levels] * 3), NOISE[..., 1])) <= 0.51
    for mode in ("L", "P", "1"):
        image = grey.convert(mode)
        transparent = image.getpixel((3, 5))
        file = save(tmp_path / f"{mode}.png", image, transparency=transparent)
        pixels = np.where(np.array(image)[..., None] == transparent, BACKGROUND, np.array(image.convert("RGB")))
        assert difference(decode_image(file), pixels) == 0
    file = save(tmp_path / "rgb.png", SEEN, transparency=(250, 20, 20))
    assert (decode_image(file)[:12, :20] == BACKGROUND).all()
    assert (decode_image(file)[:12, 20:] == (20, 250, 20)).all()


def test_a_fourth_byte_that_nobody_filled_hides_nothing(tmp_path: Path) -> None:
    bare = np.dstack((SEEN[::-1, :, ::-1], np.zeros(SEEN.shape[:2], np.uint8))).tobytes()
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + len(bare), 0, 54, 40, 40, 24, 1, 32, 0, 0, 0, 0, 0, 0)
    file = tmp_path / "image.bmp"
    file.write_bytes(head + bare)
    assert difference(decode_image(file), SEEN) == 0
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)  # a header that speaks of alpha
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 122 + len(bare), 0, 122, 108, 40, 24, 1, 32, 3, 0, 0, 0, 0, 0)
    file.write_bytes(head + masks + b"BGRs" + bytes(48) + bare)
    assert difference(decode_image(file), SEEN) == 0


@pytest.mark.parametrize(
    ("brightest", "depth"), [(200, 8), (256, 10), (1023, 10), (4095, 12), (9000, 14), (16384, 16), (65535, 16)]
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_scaled_by_the_smallest_depth_that_holds_it(
    tmp_path: Path, suffix: str, brightest: int, depth: int
) -> None:
    levels = np.linspace(0, brightest, 960).round().astype(np.uint16).reshape(24, 40)
    file = save(tmp_path / f"grey{suffix}", levels)
    assert difference(decode_image(file), np.dstack([levels // 2 ** (depth - 8)] * 3)) == 0
    colours = np.dstack((levels, levels // 9, levels // 3))  # all by the same depth
    cv2.imwrite(str(tmp_path / f"colour{suffix}"), colours[..., ::-1])
    assert difference(decode_image(tmp_path / f"colour{suffix}"), colours // 2 ** (depth - 8)) == 0


def test_16_bit_alpha_has_a_depth_of_its_own(tmp_path: Path) -> None:
    colours, alpha = np.dstack([DEEP] * 3), np.full((24, 40), 65535, np.uint16)
    cv2.imwrite(str(tmp_path / "image.png"), np.dstack((colours, alpha)))
    assert difference(decode_image(tmp_path / "image.png"), colours // 4) == 0


def test_white_may_be_zero(tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    for pixels in (SEEN[..., 0], SEEN[..., 0].astype(np.uint16) * 257):
        file.write_bytes(tiff(pixels, 0))
        assert difference(decode_image(file), 255 - SEEN[..., :1]) == 0


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (DEEP.astype(np.int16), {339: 2}),
        (DEEP.astype(np.int32), {339: 2}),
        (DEEP.astype(np.uint32), {}),
        (DEEP.astype(np.float16), {339: 3}),
        (DEEP.astype(np.float32), {339: 3}),
        (np.dstack([DEEP] * 4), {262: 5}),  # CMYK
    ],
)
def test_pixels_that_could_only_be_guessed_at_are_refused(
    tmp_path: Path, pixels: np.ndarray, tags: dict[int, int]
) -> None:
    file = tmp_path / "image.tif"
    file.write_bytes(tiff(pixels, 2 if pixels.ndim == 3 else 1, tags))
    for read in (decode_image, read_size):  # so that they are left out before the training
        with pytest.raises(UserError, match=rf"{file}: .*save (it|them)"):
            read(file)


@pytest.mark.parametrize(("pixels", "tags"), [(np.dstack([SEEN] * 2), {}), (SEEN[..., :2], {338: 2})])
def test_channels_that_are_no_colours_are_refused_where_three_are_wanted(
    tmp_path: Path, pixels: np.ndarray, tags: dict[int, int]
) -> None:
    file = tmp_path / "image.tif"
    file.write_bytes(tiff(pixels, 2, tags))
    with pytest.raises(UserError, match=rf"{file}: it has {pixels.shape[2]} channels .* or say `channels: "):
        decode_image(file)


def test_of_several_pages_the_first_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (10, 100)]
    for suffix in (".tif", ".png"):
        file = save(tmp_path / f"pages{suffix}", pages[0], save_all=True, append_images=pages[1:])
        assert (decode_image(file) == 10).all()
    file = save(tmp_path / "pages.webp", pages[0], save_all=True, append_images=pages[1:], lossless=True)
    assert read_size(file) == (20, 30)
    if cv2.__version__ >= "4.12":  # before, it is an error
        assert (decode_image(file) == 10).all()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_big_tiffs_are_read(tmp_path: Path, order: str, big: bool) -> None:
    file = tmp_path / "image.tif"
    file.write_bytes(tiff(STORED[6], 2, {274: 6}, order, big))
    assert difference(decode_image(file), SEEN) == 0
    assert read_size(file) == (24, 40)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"quality": 80}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": exif(6)}),
        ("TIFF", {}),
    ],
)
def test_sizes_are_read_without_decoding(
    tmp_path: Path, form: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    file = tmp_path / "large"
    file.write_bytes(encode(noise, form, **options) + bytes(100))  # bytes after the end
    size = decode_image(file).shape[:2]
    assert size == ((300, 400) if "exif" in options else (400, 300))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    assert read_size(file) == size


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("side", [64, 400])  # shorter and longer than what is read at first
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_cut_file_is_named(tmp_path: Path, form: str, part: float, side: int) -> None:
    whole = encode(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8), form)
    file = tmp_path / "cut"
    kept = whole[: int(part * len(whole))]
    file.write_bytes(kept)
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=rf"{file}.*cut off"):
            read(file)
    if form in ("JPEG", "PNG"):  # as a download that was broken off leaves it
        file.write_bytes(kept + bytes(len(whole) - len(kept)))
        for read in (decode_image, read_size):
            with pytest.raises(UserError, match=rf"{file}.*cut off"):
                read(file)


def test_the_end_of_a_thumbnail_is_not_the_end_of_its_image(tmp_path: Path) -> None:
    thumbnail, image = encode(SEEN, "JPEG"), encode(NOISE, "JPEG")
    block = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = image[:2] + block + image[2:]
    file = tmp_path / "cut.jpg"
    file.write_bytes(whole)
    assert read_size(file) == decode_image(file).shape[:2] == (64, 64)
    for length in (2 + len(block), 2 + len(block) + 20, len(whole) - 2):
        file.write_bytes(whole[:length])
        for read in (decode_image, read_size):
            with pytest.raises(UserError, match=rf"{file}.*cut off"):
                read(file)


def test_fill_bytes_and_thumbnails_before_the_pixels_are_passed_over(tmp_path: Path) -> None:
    image = encode(STORED[6], "JPEG", exif=exif(6), quality=95)
    thumbnail = encode(NOISE[:8, :8], "JPEG", exif=exif(3))
    block = b"\xff\xed" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    file = tmp_path / "image.jpg"
    file.write_bytes(image[:2] + block + b"\xff\xff\xff" + image[2:])
    assert decode_image(file).shape == SEEN.shape
    assert (decode_image(file)[4, 4] // 100 == (2, 0, 0)).all()  # the corner that is red
    assert read_size(file) == (24, 40)


def test_foreign_bytes_among_a_jpegs_pixels_are_found(tmp_path: Path) -> None:
    """OpenCV only prints a warning. Zeros, or bits that happen to be no marker, are not found."""
    whole, file = encode(NOISE, "JPEG", restart_marker_blocks=4), tmp_path / "image.jpg"
    file.write_bytes(whole)
    assert decode_image(file).shape == NOISE.shape
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + b"\x12\xff\x34" + whole[middle + 3 :])
    for read in (decode_image, read_size):  # so that it is left out before the training
        with pytest.raises(UserError, match=rf"{file}: it is damaged"):
            read(file)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_large_images_and_odd_exif_blocks_are_not_refused(tmp_path: Path) -> None:
    """Pillow takes more than 179 million pixels for an attack."""
    assert read_size(save(tmp_path / "large.png", Image.new("1", (14_000, 14_000)))) == (14_000, 14_000)
    for block in (b"", b"garbage!" * 4, b"II*\0", b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 274, 3, 1, 9, 0)):
        file = tmp_path / "odd.jpg"
        file.write_bytes(encode(NOISE, "JPEG", exif=b"Exif\0\0" + block))
        assert read_size(file) == decode_image(file).shape[:2] == (64, 64)


def test_a_png_whose_middle_is_destroyed_is_named(tmp_path: Path) -> None:
    whole, file = encode(NOISE, "PNG"), tmp_path / "image.png"
    file.write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    with pytest.raises(UserError, match=str(file)):
        decode_image(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", b"\xff\xd8\xff\xd9", b"BM" + bytes(60), b"RIFF\0\0\0\0WEBPVP8X", b"II*\0\xff\xff\xff\xff"],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "nothing.jpg"
    file.write_bytes(content)
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=str(file)):
            read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=r"gone\.png: No such file"):
            read(tmp_path / "gone.png")


def test_a_text_in_a_png_is_no_chunk_of_that_name(tmp_path: Path) -> None:
    content = cv2.imencode(".png", np.full((40, 60), 7, np.uint8))[1].tobytes()
    text = b"Comment\0see tRNS\0\7 and eXIfMM\0*\0\0\0\10\0\1\1\22\0\3\0\0\0\1\0\6\0\0"
    chunk = len(text).to_bytes(4, "big") + b"tEXt" + text + zlib.crc32(b"tEXt" + text).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    assert decode_image(tmp_path / "a.png").shape == (40, 60, 3)
    assert (decode_image(tmp_path / "a.png") == 7).all()


def test_a_tiff_with_a_damaged_count_is_read_or_named(tmp_path: Path) -> None:
    content = cv2.imencode(".tif", np.zeros((40, 60), np.uint8))[1].tobytes()
    start = int.from_bytes(content[4:8], "little")
    refused: dict[int, str] = {}  # message by tag
    for entry in range(start + 2, start + 2 + 12 * content[start], 12):
        for count in (0, 2, 3, 200):
            damaged = bytearray(content)
            damaged[entry + 4] = count
            (tmp_path / "a.tif").write_bytes(damaged)
            try:
                assert read_size(tmp_path / "a.tif", bytes(damaged)) == (40, 60)
            except UserError as error:
                refused[int.from_bytes(content[entry : entry + 2], "little")] = str(error)
    assert {256, 257} <= refused.keys()  # width and height
    assert all(message.startswith(f"cannot read the image {tmp_path / 'a.tif'}: ") for message in refused.values())
