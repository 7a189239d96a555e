"""Bytes to pixels: orientations, depths, damage; and sizes that are read without decoding."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.data.decode import decode_image, image_size
from yoloyard.errors import UserError

# A picture without symmetry: what is seen after each EXIF orientation was applied must be this.
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


def exif(orientation: int, order: str) -> bytes:
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 7, 0) + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    return start + struct.pack(order + "IH", 8, 2) + entries + struct.pack(order + "I", 0)


def encode(rgb: np.ndarray, suffix: str, orientation: int | None = None, order: str = "<") -> bytes:
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95])
    data = encoded.tobytes()
    if orientation is None:
        return data
    block = exif(orientation, order)
    if suffix == ".jpg":
        content = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + b"\0\0\0\0"  # the checksum of a side chunk isn't read
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_seen_the_same(tmp_path: Path, suffix: str, orientation: int) -> None:
    file = tmp_path / f"picture{suffix}"
    file.write_bytes(encode(STORED[orientation], suffix, orientation, "<" if orientation % 2 else ">"))
    image = decode_image(file)
    assert image.shape == SEEN.shape
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    # Away from the edges between the colours, where JPEG blurs.
    for y, x in ((5, 8), (5, 32), (18, 8), (18, 32)):
        assert np.abs(image[y, x].astype(int) - SEEN[y, x]).max() < 12
    assert image_size(file) == (24, 40)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_sizes_agree_with_the_decoded_picture(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"picture{suffix}"
    file.write_bytes(encode(SEEN, suffix))
    assert image_size(file) == decode_image(file).shape[:2] == (24, 40)


def test_the_size_of_a_jpeg_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    file = tmp_path / "large.jpg"
    file.write_bytes(encode(noise, ".jpg", 6) + b"\0" * 100)  # longer than what is read at first; bytes after the end
    assert file.stat().st_size > 70_000
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    assert image_size(file) == (300, 400)


def test_grey_alpha_and_16_bit_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert (decode_image(tmp_path / "grey.png") == grey[..., None]).all()
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack((SEEN[..., ::-1], np.full(SEEN.shape[:2], 255, np.uint8))))
    assert (decode_image(tmp_path / "alpha.png") == SEEN).all()
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 256)
    assert (decode_image(tmp_path / "deep.png") == grey[..., None]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("part", [0.6, 0.95])
def test_a_cut_file_is_named(tmp_path: Path, suffix: str, part: float) -> None:
    whole = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), suffix)
    file = tmp_path / f"cut{suffix}"
    file.write_bytes(whole[: int(part * len(whole))])
    for read in (decode_image, image_size):
        with pytest.raises(UserError, match=rf"{file}.*cut off"):
            read(file)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xd9", b"BM" + bytes(60)])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "nothing.jpg"
    file.write_bytes(content)
    for read in (decode_image, image_size):
        with pytest.raises(UserError, match=str(file)):
            read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (decode_image, image_size):
        with pytest.raises(UserError, match=r"gone\.png: No such file"):
            read(tmp_path / "gone.png")
