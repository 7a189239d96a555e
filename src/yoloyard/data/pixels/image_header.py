"""What an image's file says of itself before it is decoded: its size, how it is to be turned, whether it is whole.

`data` is a file from its first byte on, as much of it as there is; sizes are stored height and width, not yet turned.
"""

import re
import struct
from collections.abc import Iterator

JPEG, PNG, BMP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM"
CUT_OFF = "the file is cut off"
SIGNATURE_BYTES = 16  # enough to tell the format
_STARTS = {
    rb"\xff\xd8": ".jpg",
    rb"\x89PNG\r\n": ".png",
    rb"BM": ".bmp",
    rb"RIFF....WEBP": ".webp",
    rb"II[*+]\0|MM\0[*+]": ".tif",
    rb"GIF8": ".gif",
    rb"....ftypavi[fs]": ".avif",
    rb"\0\0\0\x0cjP  ": ".jp2",
    rb"P[1-6]\s": ".pnm",
}

_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 274, 256, 257, 258, 259, 262, 277
_PLANAR, _EXTRA, _SAMPLE_FORMAT = 284, 338, 339
_STARTS_AND_LENGTHS = ((273, 279), (324, 325))  # of strips and of tiles
_COMMON_COMPRESSIONS = (1, 5, 8, 32773, 32946)  # none, LZW, deflate, PackBits, deflate
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of TIFF's types those that hold unsigned integers
# Any marker after compressed pixels; 0xFF 0x00 and restarts belong to the pixels, and 0xFF may be repeated.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def is_tiff(data: bytes) -> bool:
    """Is it a TIFF, of either byte order, BigTIFF included?"""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_webp(data: bytes) -> bool:
    """Is it a WebP?"""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def usual_suffix(data: bytes) -> str:
    """The suffix of files that begin so; empty for an unknown format."""
    return next((suffix for start, suffix in _STARTS.items() if re.match(start, data, re.DOTALL)), "")


def header_size(data: bytes) -> tuple[int, int] | None:
    """Stored height and width; None if the format is another one or its header is longer than `data`."""
    if data.startswith(PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(BMP) and len(data) >= 26 and int.from_bytes(data[14:18], "little") >= 40:
        width, height = struct.unpack("<ii", data[18:26])
        return abs(height), width
    if data.startswith(JPEG):
        segments = _jpeg_segments(data)
        if "frame" in segments and "scan" in segments:
            start = segments["frame"]
            height, width = struct.unpack(">HH", data[start + 1 : start + 5])
            # Height 0 means that it follows after the pixels; only a decoder knows it then.
            return (height, width) if height else None
    if is_tiff(data):
        tags = tiff_tags(data)
        # Of other compressions a decoder must say whether it knows them.
        known = tags.get(_COMPRESSION, (1,))[0] in _COMMON_COMPRESSIONS and _HEIGHT in tags and _WIDTH in tags
        return (tags[_HEIGHT][0], tags[_WIDTH][0]) if known else None
    return _webp_size(data) if is_webp(data) else None


def looks_whole(head: bytes, tail: bytes, length: int) -> bool:
    """Whether start and end of a JPEG, PNG or BMP of `length` bytes say enough; if not, all of it must be looked at."""
    if head.startswith(JPEG):
        # A marker inside an embedded thumbnail doesn't count; the pixels come after the start-of-scan segment.
        scan = _jpeg_segments(head).get("scan")
        return scan is not None and length - len(tail) + tail.rfind(b"\xff\xd9") >= scan and b"\xff\xd9" in tail
    if head.startswith(PNG):
        return b"IDAT" in head and b"IEND" in tail and b"eXIf" not in tail  # EXIF may follow the pixels
    return head.startswith(BMP) and length >= _bmp_length(head)


def problem(data: bytes) -> str | None:
    """What is wrong with the whole file `data`, as far as can be told without decoding; None if nothing is.

    OpenCV returns a cut JPEG half grey without a word, and some other formats too. A damage that leaves all markers as
    they were is not seen. Of TIFFs also what OpenCV would read wrongly.
    """
    if data.startswith(JPEG):
        return _jpeg_damage(data)
    if data.startswith(PNG):
        return None if b"IEND" in data else f"{CUT_OFF} (no end marker)"
    if data.startswith(BMP):
        needed = _bmp_length(data)
    elif is_webp(data):
        needed = int.from_bytes(data[4:8], "little") + 7  # a last byte of padding is left out by some writers
    elif is_tiff(data):
        tags = tiff_tags(data)
        if not tags:
            return f"{CUT_OFF} (its directory lies beyond the end)"
        if refusal := _tiff_refusal(tags):
            return refusal
        needed = 0
        for starts, lengths in _STARTS_AND_LENGTHS:
            needed = max(needed, *(a + b for a, b in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)), 0)
    else:
        return None
    return f"{CUT_OFF} ({len(data)} bytes of {needed})" if len(data) < needed else None


def orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG, PNG, WebP or TIFF; 1 where there is none or nonsense."""
    block = b""
    if data.startswith(JPEG):
        start = _jpeg_segments(data).get("exif")
        block = b"" if start is None else data[start : start + 65536]
    elif data.startswith(PNG):
        block = next(
            (data[start : start + length] for kind, start, length in _png_chunks(data) if kind == b"eXIf"), b""
        )
    elif is_webp(data):
        block = next(
            (data[start : start + length] for kind, start, length in _riff_chunks(data) if kind == b"EXIF"), b""
        )
        block = block.removeprefix(b"Exif\0\0")
    elif is_tiff(data):
        block = data
    found = tiff_tags(block).get(_ORIENTATION, ())
    return found[0] if found and 1 <= found[0] <= 8 else 1


def stored_upright(data: bytes) -> bytes:
    """A TIFF with its orientation put to 1: OpenCV turns some TIFFs whether it is asked to or not."""
    changed = bytearray(data)
    for tag, code, _, position in _tiff_entries(data):
        if tag == _ORIENTATION:
            struct.pack_into(code, changed, position, 1)
    return bytes(changed)


def tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The entries of a TIFF's or an EXIF block's first directory that this module has a use for, by their number."""
    wanted = {_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES}
    wanted |= {_PLANAR, _EXTRA, _SAMPLE_FORMAT}
    wanted.update(*_STARTS_AND_LENGTHS)
    tags: dict[int, tuple[int, ...]] = {}
    for tag, code, count, position in _tiff_entries(data):
        code = f"{code[0]}{count}{code[1]}"
        if tag in wanted and tag not in tags and count and position + struct.calcsize(code) <= len(data):
            tags[tag] = struct.unpack_from(code, data, position)
    return tags


def _tiff_refusal(tags: dict[int, tuple[int, ...]]) -> str | None:
    """Why OpenCV would give this TIFF wrong or not at all; None if it is one of those that it reads well."""
    bits, samples = tags.get(_BITS, (1,))[0], tags.get(_SAMPLES, (1,))[0]
    if tags.get(_SAMPLE_FORMAT, (1,))[0] != 1 or bits > 16:
        return f"its pixels are signed, floating-point or of {bits} bits; save it as 8 or 16 bit"
    if samples not in (1, 3, 4):
        return f"it has {samples} channels (grey with alpha is such); save it as grey, RGB or RGBA, or as a PNG"
    if bits == 16 and samples > 1 and tags.get(_PLANAR, (1,))[0] == 2:
        return "its channels are stored one after the other in 16 bit; save them interleaved"
    if bits == 16 and tags.get(_PHOTOMETRIC, (1,))[0] not in (0, 1, 2):
        return "it is neither grey nor RGB in 16 bit; save it as RGB, or in 8 bit"
    return None


def tiff_is_inverted(tags: dict[int, tuple[int, ...]]) -> bool:
    """Does 0 mean white?"""
    return tags.get(_PHOTOMETRIC) == (0,)


def tiff_alpha(tags: dict[int, tuple[int, ...]]) -> str:
    """What a fourth channel is: `straight` alpha, `premultiplied` (as OpenCV gives it) or `none`.

    libtiff, through which OpenCV reads 8 bit, multiplies colours with straight alpha. Without a tag that says what the
    channel is (as OpenCV itself writes TIFFs) it is straight alpha, and left so.
    """
    if _EXTRA not in tags or tags.get(_PHOTOMETRIC) == (5,):
        return "straight"
    kind = tags[_EXTRA][0]
    if kind == 0:
        return "none"
    return "premultiplied" if kind == 1 or tags.get(_BITS, (8,))[0] == 8 else "straight"


def grey_transparent(data: bytes) -> int | None:
    """The grey value of a PNG that is wholly transparent, as decoded; OpenCV leaves it out, other than for colours."""
    if not data.startswith(PNG) or data[25:26] != b"\0":
        return None
    for kind, start, end in _png_chunks(data):
        if kind == b"tRNS" and end - start == 2:
            value, depth = int.from_bytes(data[start:end], "big"), data[24]
            return value * 255 // (2**depth - 1) if depth < 8 else value
        if kind == b"IDAT":
            break
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


def _jpeg_damage(data: bytes) -> str | None:
    """Follow the compressed pixels from marker to marker up to the end marker (ITU-T T.81, annex B)."""
    position = _jpeg_segments(data).get("scan")
    while position is not None:
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            break
        marker = data[found.start() + 1]
        if marker == 0xD9:
            return None
        if not 0xC4 <= marker <= 0xFE:
            return f"it is damaged: no JPEG has a marker {marker:02x} among its pixels"
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + length
    return f"{CUT_OFF} (no end marker)"


def _bmp_length(data: bytes) -> int:
    """How long a BMP's header says that it must be, 0 if its rows are packed."""
    if len(data) < 34 or int.from_bytes(data[14:18], "little") < 40:
        return 0
    start, width, height = struct.unpack("<I4xii", data[10:26])
    bits, packing = struct.unpack("<HI", data[28:34])
    return start + (width * bits + 31) // 32 * 4 * abs(height) if packing in (0, 3) else 0


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """By the first chunk of a WebP: lossy (RFC 6386, 9.1), lossless (RFC 9649, 3.4) or extended (RFC 9649, 2.7)."""
    kind, start = data[12:16], 20
    if len(data) < start + 10:
        return None
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[start + 6 : start + 10])
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        packed = int.from_bytes(data[start + 1 : start + 5], "little")
        return (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (start + 4, start + 7))
        return height, width
    return None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name of each chunk, start and end of its content."""
    position = len(PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        yield kind, position + 8, position + 8 + length
        position += 12 + length


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[position : position + 8])
        yield kind, position + 8, position + 8 + length
        position += 8 + length + length % 2


def _tiff_entries(data: bytes) -> Iterator[tuple[int, str, int, int]]:
    """Of the first directory: number, how to unpack one value, count and position of the values."""
    if not is_tiff(data):
        return
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset, header, entry_size, inline = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    at = 8 if big else 4
    if at + inline > len(data):
        return
    start = struct.unpack_from(order + offset, data, at)[0]
    if start + struct.calcsize(header) > len(data):
        return
    count = struct.unpack_from(order + header, data, start)[0]
    start += struct.calcsize(header)
    for position in range(start, min(start + entry_size * count, len(data) - entry_size + 1), entry_size):
        tag, kind, number = struct.unpack_from(f"{order}HH{offset}", data, position)
        if kind not in _INTEGERS:
            continue
        at = position + entry_size - inline
        if number * struct.calcsize(_INTEGERS[kind]) > inline:
            at = struct.unpack_from(order + offset, data, at)[0]
        yield tag, order + _INTEGERS[kind], number, at
