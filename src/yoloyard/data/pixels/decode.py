"""The only place that turns bytes into pixels, so that training, validation and prediction agree."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.data.pixels import image_header
from yoloyard.data.pixels.depth import to_8_bits, to_pixels
from yoloyard.data.pixels.image_header import JPEG, Header, has_format
from yoloyard.data.pixels.lights import files_of

# Names of the files that are looked for: formats that each OpenCV reads, and those that not every build of it has.
IMAGE_SUFFIXES = frozenset((
    ".apng", ".bmp", ".dib", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pjp", ".pjpeg", ".png",
    ".tif", ".tiff", ".webp",
)).union(
    suffix for suffix in (".avif", ".gif", ".jp2", ".jxl", ".pam", ".pbm", ".pgm", ".pnm", ".ppm", ".ras", ".sr")
    if cv2.haveImageWriter(f"any{suffix}")  # it needs the libraries that reading needs
)  # fmt: skip

COLOUR_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA: of what an image of three channels can be made
BACKGROUND = 114  # grey behind transparent pixels, and wherever no image is

# JPEGs are asked for as three channels, not turned; newer releases of OpenCV give them in our order at once.
_GIVES_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")
_COLOURS = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_COLOR_RGB if _GIVES_RGB else cv2.IMREAD_COLOR)
_REDUCED = {1: 0} | {by: getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{by}") for by in (2, 4, 8)}  # also of colours


def decode_image(
    path: Path, reduction: int = 1, data: bytes | None = None, pixels: PixelSpec = EIGHT_BITS
) -> np.ndarray:
    """The image as `pixels` says, (H, W, channels), EXIF or TIFF orientation applied; of several pages the first.

    `data` is the content of the file if it has been read.

    A JPEG can be decoded at a half, a quarter or an eighth of its size (`reduction` 2, 4, 8), sides rounded up, in
    less time than at full size; each pixel is the mean of those that it replaces. Other formats keep their size.

    3 channels are RGB: grey becomes three equal channels, CMYK is converted without a colour profile, transparent
    pixels are composed on grey 114. With 1 channel colours become grey; with N channels the file must have so many, or
    N files are a channel each. For both, transparency counts for nothing: a fourth channel is a channel like others.
    How values become pixels of 8 or 16 bits is in `depth.to_pixels`; alpha has a depth of its own.
    Raises UserError naming the file if it is missing, unreadable, cut off, or has other pixels than 8 or 16 bit, other
    channels than it must have, or another form than the first of its image's files.
    """
    if pixels.channels == 3 and not pixels.files:
        return _colours(path, *_opened(path, data), reduction, pixels)
    paths, wanted = files_of(path, pixels.files), 1 if pixels.files else pixels.channels
    if len(paths) < len(pixels.files):
        raise _unreadable(path, f"its name has none of {', '.join(pixels.files)}, the files of an image")
    parts = [_values(file, *_opened(file, data if file == path else None), reduction, wanted) for file in paths]
    for file, part in zip(paths, parts, strict=True):
        if (part.shape, part.dtype) != (parts[0].shape, parts[0].dtype):
            height, width, _ = parts[0].shape
            forms = f"{part.shape[1]}x{part.shape[0]} pixels of {part.dtype}, {width}x{height} of {parts[0].dtype}"
            raise _unreadable(file, f"it and {paths[0]} are one image and differ: {forms}")
    return to_pixels(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2), pixels)


def largest_reduction(length: int, least: int) -> int:
    """The largest `reduction` of 8, 4 and 2 that leaves at least `least` of `length` pixels, else 1."""
    return next((by for by in (8, 4, 2) if length >= by * least), 1)


def read_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Height and width of the image, orientation applied. `data` is the content of the file if it has been read.

    Only rare formats are decoded. Raises UserError naming the file if it is missing, unreadable or cut off.
    """
    data, header = _opened(path, data)
    size = image_header.stored_size(data, header)
    if size is None:
        height, width = _unchanged(path, data, header).shape[:2]
        return (width, height) if header.orientation > 4 else (height, width)
    height, width = size
    if height < 1 or width < 1:
        raise _unreadable(path, f"its header says {width}x{height} pixels")
    return (width, height) if header.orientation > 4 else (height, width)


def decode_thumbnail(path: Path, data: bytes, size: tuple[int, int], side: int) -> tuple[np.ndarray, int, int]:
    """The image in the file's bytes `data` as uint8 grey (side, side), and how many channels and bits the file has.

    All of the file is decoded, a JPEG at an eighth of its `size` (height, width) if that is enough, which is quicker.
    Of other than 1, 3 or 4 channels the first is shown. Raises UserError naming the file if it can't be decoded.
    """
    header = image_header.read_header(data)
    if has_format(data, JPEG):
        grey = _stored(path, data, cv2.IMREAD_GRAYSCALE | _REDUCED[largest_reduction(min(size), side)])
        channels, bits = header.jpeg_channels, 8
    else:
        image = _unchanged(path, data, header)
        channels, bits = 1 if image.ndim == 2 else image.shape[2], 8 * image.itemsize
        if channels in COLOUR_CHANNELS:
            grey = cv2.cvtColor(_composed(path, data, header, image, EIGHT_BITS), cv2.COLOR_RGB2GRAY)
        else:
            grey = _turn(to_8_bits(image[..., :1]), header.orientation)[..., 0]
    return cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), channels, bits


def _opened(path: Path, data: bytes | None = None) -> tuple[bytes, Header]:
    """Content and header of a file. Raises UserError naming it if it can't be read or the header names a problem."""
    try:
        data = path.read_bytes() if data is None else data
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    header = image_header.read_header(data)
    if header.problem:
        raise _unreadable(path, header.problem)
    return data, header


def _colours(path: Path, data: bytes, header: Header, reduction: int, pixels: PixelSpec) -> np.ndarray:
    """The pixels as RGB (H, W, 3), turned."""
    if has_format(data, JPEG):
        image = _stored(path, data, _COLOURS | _REDUCED[reduction])
        image = _turn(image if _GIVES_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), header.orientation)
        return to_pixels(image, pixels)
    image = _unchanged(path, data, header)
    if image.ndim == 3 and (channels := image.shape[2]) not in COLOUR_CHANNELS:
        what = f"it has {channels} channels (grey with alpha is such)"
        raise _unreadable(path, f"{what}; save it as grey, RGB or RGBA, or say `channels: {channels}` in the data.yaml")
    return _composed(path, data, header, image, pixels)


def _composed(path: Path, data: bytes, header: Header, image: np.ndarray, pixels: PixelSpec) -> np.ndarray:
    """The RGB pixels (H, W, 3), turned, of grey, BGR or BGRA values as stored."""
    if image.ndim == 3 and image.shape[2] == 4:
        alpha = image_header.tiff_alpha(header.tiff) if header.tiff else "straight"
        if alpha == "none" or (has_format(data, image_header.BMP) and not image[..., 3].any()):
            image = to_pixels(image[..., :3], pixels)  # a fourth byte that nobody filled
        elif alpha == "premultiplied":
            if pixels.window:
                raise _unreadable(path, "its colours are multiplied with alpha, before a window; save it without alpha")
            image = _over_background(to_pixels(image, pixels))
        else:
            opaque = to_pixels(image[..., 3], replace(pixels, window=None))
            image = compose(to_pixels(image[..., :3], pixels), opaque)
    elif image.ndim == 2 and header.transparent_grey is not None:  # which OpenCV leaves out, other than for colours
        opaque = np.where(image == header.transparent_grey, 0, pixels.largest).astype(pixels.dtype)
        image = compose(cv2.cvtColor(to_pixels(image, pixels), cv2.COLOR_GRAY2RGB), opaque)
    else:
        image = to_pixels(image, pixels)
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return _turn(cv2.cvtColor(np.ascontiguousarray(image), code), header.orientation)


def _values(path: Path, data: bytes, header: Header, reduction: int, channels: int) -> np.ndarray:
    """The values as stored, uint8 or uint16 (H, W, channels), turned; colours made grey for one channel."""
    if has_format(data, JPEG):
        kind = cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_GRAYSCALE if channels == 1 else _COLOURS
        image = _stored(path, data, kind | _REDUCED[reduction])
    elif header.tiff and header.tiff.samplesperpixel > 1 and channels > 1:
        image = _samples(path, data)  # of four channels OpenCV takes the last for alpha, and multiplies by it
    else:
        image = _unchanged(path, data, header)
    image = image.reshape(*image.shape[:2], -1)
    found = image.shape[2]
    if channels == 1 and found in COLOUR_CHANNELS[1:]:
        image = cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2GRAY)[..., None]
    elif found != channels:
        raise _unreadable(path, f"it has {found} channels and must have {channels} (`channels` of its set)")
    elif channels == 4 and not header.tiff:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return _turn(image, header.orientation)


def _unchanged(path: Path, data: bytes, header: Header) -> np.ndarray:
    """The values as stored, of all but JPEG: grey (H, W), BGR or BGRA (H, W, 3 | 4), or other channels (H, W, N)."""
    page = header.tiff
    if page and not image_header.gives_all_channels(page):
        image = _samples(path, data)
        return image[..., [2, 1, 0, 3][: image.shape[2]]] if image.shape[2] in COLOUR_CHANNELS else image
    if page and header.orientation > 1:
        data = image_header.stored_upright(data, page)
    # This flag gives the pixels as stored. All else is done here, so that releases of OpenCV agree.
    image = _stored(path, data, cv2.IMREAD_UNCHANGED)
    if image.dtype not in (np.uint8, np.uint16):
        raise _unreadable(path, f"its pixels are {image.dtype}; save it as 8 or 16 bit")
    if image.dtype == np.uint16 and page and page.tags.valueof("PhotometricInterpretation") == 0:
        image = 65535 - image  # 0 means white; OpenCV does this for 8 bit only
    return image


def _stored(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise _unreadable(path, str(error.err)) from error
    if image is None:
        raise _unreadable(path, "not an image that can be decoded" if data else "the file is empty")
    return image


def compose(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) seen through alpha (H, W) over the background; both uint8 or both uint16."""
    largest = np.iinfo(colours.dtype).max
    wide = np.uint16 if largest == 255 else np.uint32
    share = alpha[..., None].astype(wide)
    behind = BACKGROUND * (largest // 255) * (largest - share)
    return ((colours * share + behind + largest // 2) // largest).astype(colours.dtype)


def _over_background(image: np.ndarray) -> np.ndarray:
    """Colours that are multiplied with their alpha (H, W, 4), uint8 or uint16, over the background: (H, W, 3)."""
    behind = compose(np.zeros_like(image[..., :3]), image[..., 3])
    return np.minimum(image[..., :3].astype(np.uint32) + behind, np.iinfo(image.dtype).max).astype(image.dtype)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """The content of a JPEG file of an image, uint8 RGB (H, W, 3)."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _samples(path: Path, data: bytes) -> np.ndarray:
    """All channels of a TIFF as they are stored, uint8 or uint16 (H, W, channels)."""
    try:
        return image_header.tiff_samples(data)
    except Exception as error:  # tifffile raises whatever the bytes lead to
        raise _unreadable(path, f"its channels can't be read ({error}); save it without compression") from error


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    # EXIF 2.32, tag 0x0112: 2 mirrored, 3 half turn, 4 upside down; 5 to 8 are these with rows and columns exchanged.
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read the image {path}: {reason}")
