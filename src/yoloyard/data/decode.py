"""The only place that turns bytes into pixels: training, validation, prediction and server agree.

H and W are pixels of the picture as it is meant to be seen: the EXIF orientation is applied.
"""

import struct
from pathlib import Path

import cv2
import numpy as np

from yoloyard.errors import UserError

# How much of a file's end is read to see whether it is whole; some cameras append a few bytes after the end marker.
TAIL_BYTES = 4096

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x0112


def decode_image(path: Path) -> np.ndarray:
    """The picture as uint8 RGB (H, W, 3), EXIF orientation applied.

    Grey becomes three equal channels, alpha is dropped, 16 bit keeps its upper byte.
    Raises UserError naming the file if it is missing, unreadable or cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    _check_whole(path, data, data)
    return _decode(path, data)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture, EXIF orientation applied.

    JPEG, PNG and BMP are read from their header, without decoding, and their end is looked at; others are decoded.
    Raises UserError naming the file if it is missing, unreadable or cut off.
    """
    try:
        with path.open("rb") as file:
            head = file.read(65536)
            length = file.seek(0, 2)
            if length <= len(head):
                data = tail = head
            else:
                file.seek(max(0, length - TAIL_BYTES))
                data, tail = head, file.read()
            size = _header_size(data)
            if size is None or not _ends_well(head, tail):
                file.seek(0)
                data = tail = file.read()
                size = _header_size(data)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    _check_whole(path, data, tail)
    if size is None:
        height, width = _decode(path, data).shape[:2]
        return height, width
    height, width = size
    if height < 1 or width < 1:
        raise _unreadable(path, f"its header says {width}x{height} pixels")
    return (width, height) if _orientation(data) > 4 else (height, width)


def decode_thumbnail(path: Path, data: bytes, size: tuple[int, int], side: int) -> np.ndarray:
    """The picture as uint8 grey (side, side), made of all pixels of the file's bytes `data`; orientation applied.

    All of the file is decoded, JPEGs to an eighth of their `size` (height, width) if that is enough, which is quicker.
    Raises UserError naming the file if it can't be decoded.
    """
    if data.startswith(b"\xff\xd8"):
        factors = {
            8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
            4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
            2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        }
        flags = next((flag for by, flag in factors.items() if min(size) >= by * side), cv2.IMREAD_GRAYSCALE)
        try:
            grey = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise _unreadable(path, str(error.err)) from error
        if grey is None:
            raise _unreadable(path, "not a picture that can be decoded")
    else:
        grey = cv2.cvtColor(_decode(path, data), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)


def _decode(path: Path, data: bytes) -> np.ndarray:
    # The orientation is applied here, since which formats OpenCV turns by itself depends on its version.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise _unreadable(path, str(error.err)) from error
    if image is None:
        raise _unreadable(path, "not a picture that can be decoded" if data else "the file is empty")
    return _turn(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), _orientation(data))


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    # EXIF 2.32, tag 0x0112: 2 mirrored, 3 half turn, 4 upside down, 5-8 the same with rows and columns swapped.
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _check_whole(path: Path, data: bytes, tail: bytes) -> None:
    # OpenCV returns a cut JPEG half grey without a word, so the end marker is looked for.
    if not _ends_well(data, tail):
        raise _unreadable(path, "the file is cut off (no end marker)")


def _ends_well(head: bytes, tail: bytes) -> bool:
    if head.startswith(b"\xff\xd8"):
        # A marker inside an embedded thumbnail doesn't count; the pixels come after the start-of-scan segment.
        start = _jpeg_segments(head).get("scan", 0) if tail is head else 0
        return tail.find(b"\xff\xd9", start) >= 0
    if head.startswith(_PNG_SIGNATURE):
        return b"IEND" in tail
    return True


def _header_size(data: bytes) -> tuple[int, int] | None:
    """Stored height and width by the header of a PNG, BMP or JPEG, None for others or if the header is longer."""
    if data.startswith(_PNG_SIGNATURE) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(b"BM") and len(data) >= 26 and int.from_bytes(data[14:18], "little") >= 40:
        width, height = struct.unpack("<ii", data[18:26])
        return abs(height), width
    if data.startswith(b"\xff\xd8"):
        segments = _jpeg_segments(data)
        if "frame" in segments and "scan" in segments:
            start = segments["frame"]
            height, width = struct.unpack(">HH", data[start + 1 : start + 5])
            # Height 0 means that it follows after the pixels; only a decoder knows it then.
            return (height, width) if height else None
    return None


def _jpeg_segments(data: bytes) -> dict[str, int]:
    """Where the contents of the frame header, the EXIF block and the first scan of a JPEG start, as far as present."""
    found: dict[str, int] = {}
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a content
            position += 2
            continue
        content, length = position + 4, int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            found["scan"] = content
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and content + 5 <= len(data):
            found.setdefault("frame", content)
        if marker == 0xE1 and data[content : content + 6] == b"Exif\0\0":
            found.setdefault("exif", content + 6)
        position += 2 + length
    return found


def _orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG, PNG or WebP; 1 where there is none."""
    if data.startswith(b"\xff\xd8"):
        start = _jpeg_segments(data).get("exif")
        return 1 if start is None else _tiff_orientation(data[start:])
    if data.startswith(_PNG_SIGNATURE):
        position = 8
        while position + 8 <= len(data):
            length, kind = struct.unpack(">I4s", data[position : position + 8])
            if kind == b"eXIf":
                return _tiff_orientation(data[position + 8 : position + 8 + length])
            if kind in (b"IDAT", b"IEND"):
                break
            position += 12 + length
        return 1
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        position = 12
        while position + 8 <= len(data):
            kind, length = struct.unpack("<4sI", data[position : position + 8])
            if kind == b"EXIF":
                return _tiff_orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
            position += 8 + length + length % 2
    return 1


def _tiff_orientation(block: bytes) -> int:
    """Orientation by the first directory of an EXIF block, 1 if it says none or nonsense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return 1
    start = struct.unpack(order + "I", block[4:8])[0]
    count = struct.unpack(order + "H", block[start : start + 2])[0] if start + 2 <= len(block) else 0
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if entry + 10 > len(block):
            break
        tag, kind = struct.unpack(order + "HH", block[entry : entry + 4])
        if tag == _ORIENTATION_TAG and kind == 3:
            value = struct.unpack(order + "H", block[entry + 8 : entry + 10])[0]
            return value if 1 <= value <= 8 else 1
    return 1


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read the image {path}: {reason}")
