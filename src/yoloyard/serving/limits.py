"""What a request may cost: bytes, pixels and seconds, each checked before it is spent."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.data.pixels.image_header import read_header, stored_size, usual_suffix

IMAGE_BYTES = 20 * 2**20
IMAGE_PIXELS = 50_000_000
IMAGE_TILES = 500  # each takes the network as long as an image that isn't cut
JPEG_SCANS = 100  # a progressive JPEG has about 10; each goes over all pixels, and an empty one has some bytes
BODIES_BYTES = 512 * 2**20  # of all requests and answers together
BODY_SECONDS = 30  # until all of a body has come
HEAD_SECONDS = 20  # until the head of a request has come, and how long a connection may rest between two
EXCHANGE_SECONDS = 120  # from the first byte of a request to the last one of its answer; a reader may stand still
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tif": "TIFF"}  # whose headers say the size


class Bodies:
    """The bodies of requests and answers, of which at most `most` bytes are in memory before a request is refused."""

    def __init__(self, most: int = BODIES_BYTES) -> None:
        self._most, self._held = most, 0

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body, of at most `limit` bytes. Raises HTTPException, and ClientDisconnect where it breaks off."""
        body, size = bytearray(), 0
        too_large = HTTPException(413, f"the body is larger than {limit:,} bytes")
        if int(request.headers.get("content-length", 0)) > limit:
            raise too_large
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for chunk in request.stream():
                        body += chunk
                        size += len(chunk)
                        self._held += len(chunk)
                        if size > limit:
                            raise too_large
                        if self._held > self._most:
                            raise busy("too many bytes are waiting")
            except TimeoutError as error:
                raise HTTPException(408, f"the body did not come within {BODY_SECONDS} seconds") from error
            whole = bytes(body)
            body.clear()
            yield whole
        finally:
            self._held -= size

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Inside, so many bytes more are in memory."""
        self._held += size
        try:
            yield
        finally:
            self._held -= size


def busy(reason: str) -> HTTPException:
    """The answer to what comes too fast."""
    return HTTPException(429, f"{reason}: try again", headers={"Retry-After": "1"})


def size_before_decoding(data: bytes, pixels: PixelSpec = EIGHT_BITS) -> tuple[int, int]:
    """Height and width of the image in `data`, upright. Raises HTTPException for what must not be decoded.

    `pixels`: what the network takes. More channels or bits than those of RGB make the largest image smaller.
    """
    if (suffix := usual_suffix(data)) not in FORMATS:
        raise HTTPException(415, f"this is no image of a format that is taken: {', '.join(FORMATS.values())}")
    header = read_header(data)
    if header.problem:
        raise HTTPException(400, f"cannot read the image: {header.problem}")
    if suffix == ".jpg" and data.count(b"\xff\xda") > JPEG_SCANS:
        raise HTTPException(413, f"the image has more than {JPEG_SCANS} scans; save it as a plain JPEG")
    if (size := stored_size(data, header)) is None:
        raise HTTPException(415, "the header of this image does not say its size; save it as JPEG or PNG")
    height, width = size
    if height < 1 or width < 1:
        raise HTTPException(400, f"cannot read the image: its header says {width}x{height} pixels")
    most = IMAGE_PIXELS * 3 // max(3, pixels.image_bytes(1, 1))
    if height * width > most:
        raise HTTPException(413, f"the image has {width}x{height} pixels; {most:,} is the most")
    return (width, height) if header.orientation > 4 else (height, width)
