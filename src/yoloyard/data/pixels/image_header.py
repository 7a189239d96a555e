"""What the file of an image says before it is decoded: its size, how it must be turned, whether it is whole.

Pillow reads JPEG, PNG, BMP and WebP, and tifffile reads TIFF; of any other format only a decoder knows something.
Without decoding neither tells that a file is cut off, so those lines are ours, and so is the way to the orientation of
JPEG and PNG: each image that is decoded takes it. Pillow's classes are called directly: `Image.open` refuses large
images. `data` is a whole file.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

if TYPE_CHECKING:
    from tifffile import TiffPage

JPEG, PNG, BMP, TIFF, WEBP = rb"\xff\xd8", rb"\x89PNG\r\n", rb"BM", rb"II[*+]\0|MM\0[*+]", rb"RIFF....WEBP"
SIGNATURE_BYTES = 16  # enough to tell the format
_SUFFIXES = {
    JPEG: ".jpg", PNG: ".png", BMP: ".bmp", WEBP: ".webp", TIFF: ".tif",
    rb"GIF8": ".gif", rb"....ftypavi[fs]": ".avif", rb"\0\0\0\x0cjP  ": ".jp2", rb"P[1-6]\s": ".pnm",
}  # fmt: skip

CUT_OFF = "the file is cut off"
_ORIENTATION_TAG, _ORIENTATIONS = 274, range(1, 9)
_COMMON_COMPRESSIONS = (1, 5, 8, 32773, 32946)  # of TIFFs: none, LZW, deflate, PackBits, deflate
_NO_LINES = logging.NullHandler()  # tifffile tells of each odd tag; what matters is said here
# Any marker; 0xFF 0x00 and restarts belong to compressed pixels, and 0xFF may be repeated.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True)
class Header:
    """What is known of an image without decoding it."""

    orientation: int = 1  # 1 to 8, EXIF 2.32, tag 0x0112
    problem: str | None = None  # what is wrong with the file
    transparent_grey: int | None = None  # of a grey PNG: the decoded value that is wholly transparent
    tiff: TiffPage | None = None  # of a TIFF: its first page
    jpeg_channels: int = 0  # of a JPEG: 1 grey, 3 colours (CMYK among them, which is decoded to colours)


def has_format(data: bytes, start: bytes) -> bool:
    """Whether a file begins as the pattern `start` says, for instance JPEG or TIFF (BigTIFF included)."""
    return re.match(start, data, re.DOTALL) is not None


def usual_suffix(data: bytes) -> str:
    """The suffix of files that begin so; empty for an unknown format."""
    return next((suffix for start, suffix in _SUFFIXES.items() if has_format(data, start)), "")


def read_header(data: bytes) -> Header:
    """What the file `data` says of itself.

    `problem` names a file that is cut off, which OpenCV returns half grey without an error, and a TIFF that OpenCV
    would read wrongly. A damage that leaves all markers of a JPEG as they were is not seen.
    """
    return next((read(data) for start, read in _READERS.items() if has_format(data, start)), Header())


def stored_size(data: bytes, header: Header) -> tuple[int, int] | None:
    """Height and width of the pixels as they are stored, not yet turned; None: only a decoder knows it."""
    if page := header.tiff:
        # Of other compressions a decoder must say whether it knows them.
        return (page.imagelength, page.imagewidth) if page.compression in _COMMON_COMPRESSIONS else None
    image = _opened(data)
    return (image.height, image.width) if image else None


def _jpeg(data: bytes) -> Header:
    """Go from marker to marker, among the compressed pixels too, up to the end marker (ITU-T T.81, annex B)."""
    position, exif, is_header, channels = 2, b"", True, 0
    while found := _JPEG_MARKER.search(data, position):
        marker, position = data[found.start() + 1], found.end()
        if is_header and (marker < 0xC0 or marker == 0xD9):
            break
        if marker == 0xD9:
            return Header(_orientation(exif), jpeg_channels=min(channels, 3))
        if not is_header and marker < 0xC4:
            return Header(problem=f"it is damaged: no JPEG has a marker {marker:02x} among its pixels")
        length = int.from_bytes(data[position : position + 2], "big")
        if is_header and marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
            exif += data[position + 8 : position + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and position + 7 < len(data):
            channels = data[position + 7]  # after length, precision, height and width of a frame
        is_header &= marker != 0xDA  # start of scan
        position += length
    return Header(problem=f"{CUT_OFF}, or its header is damaged" if is_header else f"{CUT_OFF} (no end marker)")


def _png(data: bytes) -> Header:
    chunks: dict[bytes, bytes] = {}  # the first of each name; an eXIf may follow the pixels
    position = 8
    while len(name := data[position + 4 : position + 8]) == 4:
        length = int.from_bytes(data[position : position + 4], "big")
        if name in (b"eXIf", b"tRNS", b"IEND"):
            chunks.setdefault(name, data[position + 8 : position + 8 + length])
        position += 12 + length
    problem = None if b"IEND" in chunks else f"{CUT_OFF} (no end marker)"
    transparent = None
    if b"tRNS" in chunks and data[25] == 0:  # grey; releases of Pillow differ in this value
        depth, transparent = data[24], int.from_bytes(chunks[b"tRNS"][:2], "big")
        transparent = transparent * 255 // (2**depth - 1) if depth < 8 else transparent
    return Header(_orientation(chunks.get(b"eXIf")), problem, transparent)


def _bmp(data: bytes) -> Header:
    image, needed = _opened(data), 0
    if image is not None:
        codec, _, offset, arguments = image.tile[0]
        if codec == "raw" and isinstance(arguments, tuple):  # other rows are packed
            needed = offset + arguments[1] * image.height
    return Header(problem=_shortage(data, needed))


def _webp(data: bytes) -> Header:
    needed = int.from_bytes(data[4:8], "little") + 7  # a last byte of padding is left out by some writers
    image = _opened(data)
    return Header(_orientation(image.info.get("exif") if image else None), _shortage(data, needed))


def _tiff(data: bytes) -> Header:
    from tifffile import TiffFile  # few data sets need it at their start

    logging.getLogger("tifffile").addHandler(_NO_LINES)
    try:
        with TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
        numbers: tuple[object, ...] = (
            page.imagelength,
            page.imagewidth,
            page.bitspersample,
            page.samplesperpixel,
            page.sampleformat,
        )
    except Exception:  # noqa: BLE001  # tifffile raises whatever the bytes lead to
        page, numbers = None, ()
    if not all(isinstance(number, int) for number in numbers):
        return Header(problem="it is damaged: its directory has several numbers where one belongs")
    if page is None or not page.tags:
        return Header(problem=f"{CUT_OFF} (its directory lies beyond the end)")
    needed = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    orientation = page.tags.valueof(_ORIENTATION_TAG)
    problem = _tiff_refusal(page) or _shortage(data, needed)
    return Header(orientation if orientation in _ORIENTATIONS else 1, problem, tiff=page)


def _tiff_refusal(page: TiffPage) -> str | None:
    """Why OpenCV would give this TIFF wrong or not at all; None if it is one of those that it reads well."""
    bits, samples = page.bitspersample, page.samplesperpixel
    if page.sampleformat != 1 or bits > 16:
        return f"its pixels are signed, floating-point or of {bits} bits; save it as 8 or 16 bit"
    if bits == 16 and samples in (3, 4) and page.photometric not in (0, 1, 2):
        return "it is neither grey nor RGB in 16 bit; save it as RGB, or in 8 bit"
    return None


def gives_all_channels(page: TiffPage) -> bool:
    """Whether OpenCV gives all that is in this TIFF: not planes of 16 bit, nor channels that are no colours."""
    has_planes = page.bitspersample == 16 and page.planarconfig == 2
    return page.samplesperpixel == 1 or (page.samplesperpixel in (3, 4) and page.photometric != 1 and not has_planes)


def tiff_samples(data: bytes) -> np.ndarray:
    """All channels of the first page (H, W, channels) as stored, not turned. Raises whatever the bytes lead to."""
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        samples = page.asarray()
    samples = np.moveaxis(samples, 0, 2) if page.planarconfig == 2 else samples
    return np.ascontiguousarray(samples, samples.dtype.newbyteorder("="))


def tiff_alpha(page: TiffPage) -> str:
    """What a fourth channel is: `straight` alpha, `premultiplied` (as OpenCV gives it) or `none`.

    libtiff, through which OpenCV reads 8 bit, multiplies colours with straight alpha. Without a tag that says what the
    channel is (as OpenCV itself writes TIFFs) it is straight alpha, and left so.
    """
    if not page.extrasamples or page.photometric == 5:
        return "straight"
    others = "premultiplied" if page.bitspersample == 8 else "straight"
    return {0: "none", 1: "premultiplied"}.get(page.extrasamples[0], others)


def stored_upright(data: bytes, page: TiffPage) -> bytes:
    """A TIFF with the orientation of its first page set to 1: OpenCV turns some TIFFs even if asked not to."""
    tag = page.tags[_ORIENTATION_TAG]
    one = (1).to_bytes(tag.valuebytecount, "little" if page.parent.byteorder == "<" else "big")
    return data[: tag.valueoffset] + one + data[tag.valueoffset + len(one) :]


def _opened(data: bytes) -> ImageFile | None:
    try:
        return next((kind(io.BytesIO(data)) for start, kind in _KINDS.items() if has_format(data, start)), None)
    except (OSError, SyntaxError, ValueError):
        return None


def _orientation(block: bytes | None) -> int:
    """The orientation in an EXIF block; 1 if there is none or nonsense."""
    block = (block or b"").removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"  # TIFF 6.0, section 2
    start = int.from_bytes(block[4:8], order) + 2
    for entry in range(start, start + 12 * int.from_bytes(block[start - 2 : start], order), 12):
        tag, kind = (int.from_bytes(block[at : at + 2], order) for at in (entry, entry + 2))
        if tag == _ORIENTATION_TAG and kind in _INTEGER_BYTES:
            value = int.from_bytes(block[entry + 8 : entry + 8 + _INTEGER_BYTES[kind]], order)
            return value if value in _ORIENTATIONS else 1
    return 1


def _shortage(data: bytes, needed: int) -> str | None:
    return f"{CUT_OFF} ({len(data)} bytes of {needed})" if len(data) < needed else None


_INTEGER_BYTES = {1: 1, 3: 2, 4: 4}  # of the types BYTE, SHORT and LONG
_KINDS: dict[bytes, type[ImageFile]] = {JPEG: JpegImageFile, PNG: PngImageFile, BMP: BmpImageFile, WEBP: WebPImageFile}
_READERS: dict[bytes, Callable[[bytes], Header]] = {JPEG: _jpeg, PNG: _png, BMP: _bmp, WEBP: _webp, TIFF: _tiff}
