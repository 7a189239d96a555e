"""The only place that turns bytes into pixels, so that training, validation and prediction agree."""

from pathlib import Path

import cv2
import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.data.pixels import image_header
from yoloyard.data.pixels.image_header import JPEG, Header, has_format

# Names of the files that are looked for: formats that each OpenCV reads, and those that not every build of it has.
IMAGE_SUFFIXES = frozenset((
    ".apng", ".bmp", ".dib", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pjp", ".pjpeg", ".png",
    ".tif", ".tiff", ".webp",
)).union(
    suffix for suffix in (".avif", ".gif", ".jp2", ".jxl", ".pam", ".pbm", ".pgm", ".pnm", ".ppm", ".ras", ".sr")
    if cv2.haveImageWriter(f"any{suffix}")  # it needs the libraries that reading needs
)  # fmt: skip

BACKGROUND = 114  # grey behind transparent pixels, and wherever no image is

DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras; the brightest value of a 16-bit image tells its depth

# JPEGs are asked for as three channels, not turned; newer releases of OpenCV give them in our order at once.
_GIVES_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")
_COLOURS = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_COLOR_RGB if _GIVES_RGB else cv2.IMREAD_COLOR)
_REDUCED = {1: 0} | {by: getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{by}") for by in (2, 4, 8)}  # also of colours


def decode_image(path: Path, reduction: int = 1, data: bytes | None = None) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3), EXIF or TIFF orientation applied; of several pages or frames the first.

    `data` is the content of the file if it has been read.

    A JPEG can be decoded at a half, a quarter or an eighth of its size (`reduction` 2, 4, 8), sides rounded up, in
    less time than at full size; each pixel is the mean of those that it replaces. Other formats keep their size.

    Grey becomes three equal channels, CMYK is converted without a colour profile. Transparent pixels are composed on
    grey 114. Of 16 bit the depth is the smallest of 8, 10, 12, 14 and 16 bits that holds the image's brightest value,
    and values are shifted from that depth down to 8 bits, the colours together, alpha apart from them.
    Raises UserError naming the file if it is missing, unreadable, cut off, or has other pixels than 8 or 16 bit.
    """
    return _decode(path, *_opened(path, data), reduction)


def largest_reduction(length: int, least: int) -> int:
    """The largest `reduction` of 8, 4 and 2 that leaves at least `least` of `length` pixels, else 1."""
    return next((by for by in (8, 4, 2) if length >= by * least), 1)


def image_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Height and width of the image, orientation applied. `data` is the content of the file if it has been read.

    Only rare formats are decoded. Raises UserError naming the file if it is missing, unreadable or cut off.
    """
    data, header = _opened(path, data)
    size = image_header.stored_size(data, header)
    if size is None:
        height, width = _decode(path, data, header).shape[:2]
        return height, width
    height, width = size
    if height < 1 or width < 1:
        raise _unreadable(path, f"its header says {width}x{height} pixels")
    return (width, height) if header.orientation > 4 else (height, width)


def decode_thumbnail(path: Path, data: bytes, size: tuple[int, int], side: int) -> np.ndarray:
    """The image in the file's bytes `data` as uint8 grey (side, side); orientation applied.

    All of the file is decoded, a JPEG at an eighth of its `size` (height, width) if that is enough, which is quicker.
    Raises UserError naming the file if it can't be decoded.
    """
    if has_format(data, JPEG):
        grey = _stored(path, data, cv2.IMREAD_GRAYSCALE | _REDUCED[largest_reduction(min(size), side)])
    else:
        grey = cv2.cvtColor(_decode(path, data, image_header.read_header(data)), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)


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


def _decode(path: Path, data: bytes, header: Header, reduction: int = 1) -> np.ndarray:
    if has_format(data, JPEG):
        image = _stored(path, data, _COLOURS | _REDUCED[reduction])
        return _turn(image if _GIVES_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), header.orientation)
    page = header.tiff
    if page and header.orientation > 1:
        data = image_header.stored_upright(data, page)
    # This flag gives the pixels as stored. All else is done here, so that releases of OpenCV agree.
    image = _stored(path, data, cv2.IMREAD_UNCHANGED)
    if image.dtype not in (np.uint8, np.uint16):
        raise _unreadable(path, f"its pixels are {image.dtype}; save it as 8 or 16 bit")
    if image.dtype == np.uint16 and page and page.tags.valueof("PhotometricInterpretation") == 0:
        image = 65535 - image  # 0 means white; OpenCV does this for 8 bit only
    if image.ndim == 3 and image.shape[2] == 4:
        alpha = image_header.tiff_alpha(page) if page else "straight"
        if alpha == "none" or (has_format(data, image_header.BMP) and not image[..., 3].any()):
            image = image[..., :3]  # a fourth byte that nobody filled
        elif alpha == "premultiplied":
            image = to_8_bits(image)
            behind = (BACKGROUND * (255 - image[..., 3:].astype(np.uint16)) + 127) // 255
            image = np.minimum(image[..., :3] + behind, 255).astype(np.uint8)
        else:
            image = compose(to_8_bits(image[..., :3]), to_8_bits(image[..., 3]))
    elif image.ndim == 2 and header.transparent_grey is not None:  # which OpenCV leaves out, other than for colours
        opaque = np.where(image == header.transparent_grey, 0, 255).astype(np.uint8)
        image = compose(cv2.cvtColor(to_8_bits(image), cv2.COLOR_GRAY2RGB), opaque)
    image = to_8_bits(image)
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return _turn(cv2.cvtColor(np.ascontiguousarray(image), code), header.orientation)


def _stored(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise _unreadable(path, str(error.err)) from error
    if image is None:
        raise _unreadable(path, "not an image that can be decoded" if data else "the file is empty")
    return image


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """Pixels of 8 or 16 bit as uint8. The brightest pixel of 16 bit decides the depth (see `decode_image`)."""
    if image.dtype == np.uint8:
        return image
    brightest = int(image.max())
    depth = next(bits for bits in DEPTHS if brightest < 2**bits)
    return (image >> (depth - 8)).astype(np.uint8)


def compose(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) seen through alpha (H, W) over the background."""
    share = alpha[..., None].astype(np.uint16)
    return ((colours * share + BACKGROUND * (255 - share) + 127) // 255).astype(np.uint8)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """The content of a JPEG file of an image, uint8 RGB (H, W, 3)."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


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
