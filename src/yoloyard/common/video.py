"""Videos and cameras: their frames one by one, and the videos that are written."""

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.files import cannot_write, plain_path

log = logging.getLogger(__name__)

# What FFmpeg, which OpenCV's packages contain, reads as a video by itself; audio, subtitles and playlists left out.
VIDEO_SUFFIXES = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265",
    ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm",
    ".wmv", ".wtv", ".xvid", ".y4m",
    ".f4p", ".gxf", ".insv", ".ismv", ".lrv", ".m2p", ".m4s", ".mj2", ".mk3d", ".mod", ".mpeg4", ".nsv", ".tod", ".trp",
))  # fmt: skip
# How files begin that hold no number of frames, which FFmpeg estimates: MPEG program streams, NUT, YUV4MPEG2, DV.
UNCOUNTED = (b"\0\0\1\xba", b"nut/", b"YUV4MPEG2", b"\x1f\7\0")
PACKETS = (188, 192, 204)  # bytes of those of MPEG transport streams: ISO/IEC 13818-1; with a time; with check bytes
USUAL_FPS = 25.0  # frames a second, where nothing credible is said
FILE_FPS = (0.01, 65535)  # the range that an MPEG-4 file can have
LIVE_FPS = (1, 240)  # the credible range of cameras and streams
MAX_FAILED_READS = 1000  # in a row, after which a file is at its end
# What an intact file may lack: trimmed ones hold frames before their beginning; some counts follow from the duration.
TOLERATED_SHARE, TOLERATED_FRAMES = 0.1, 2


class UnreadableError(UserError):
    """An image or video can't be read, or not all of it."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video: its number from 0, and how many come a second."""

    number: int
    image: np.ndarray  # uint8 RGB (H, W, 3)
    frames_per_second: float


def read_frames(address: str, is_live: bool) -> Iterator[Frame]:
    """The frames of a video file, or of a camera (a number) or stream if `is_live`, turned as the file says.

    A stream that says how many frames it has is read like a file, with its own rate and an end. A frame that can't be
    decoded is skipped. At the end raises UnreadableError if there was no frame, if frames in between or more than a
    tenth of the claimed number are missing, or if a live source has ended. A line tells of fewer missing frames, of an
    end that can't be checked, and of an impossible rate.
    """
    is_local, path = not is_live, Path(address)
    # With the suffix .jpg, OpenCV would take a video for an image.
    plain = nullcontext(address) if is_live else plain_path(path, path.suffix.lower() in VIDEO_SUFFIXES)
    with plain as opened:
        capture = cv2.VideoCapture(int(opened) if is_live and opened.isdecimal() else opened)
        try:
            rate, claimed = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            is_counted = 0 < claimed < 2**31  # an unknown count is a huge or a negative number
            is_live = is_live and not ("://" in address and is_counted)
            slowest, fastest = LIVE_FPS if is_live else FILE_FPS
            if not slowest <= rate <= fastest:
                if not is_live and capture.isOpened():
                    log.warning(f"{address} says {rate:g} frames a second: {USUAL_FPS:g} are assumed")
                rate = USUAL_FPS
            count = skipped = failed = 0
            while failed <= (0 if is_live else MAX_FAILED_READS):
                there, pixels = capture.read()
                if not there:
                    failed += 1  # a broken frame, or the end
                    continue
                skipped, failed = skipped + failed, 0
                yield Frame(count + skipped, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), rate)
                count += 1
        finally:
            capture.release()
    if not count:
        raise UnreadableError(f"the video or camera {address} has no frame that can be read")
    if is_live:
        raise UnreadableError(f"{address} gives no more frames, after {count}")
    missing = max(skipped, int(claimed) - count if is_counted else 0)
    line = f"{address}: {missing} of {count + missing} frames are missing; the video is damaged or cut"
    if skipped or missing > max(TOLERATED_FRAMES, TOLERATED_SHARE * claimed):
        raise UnreadableError(line)
    if missing:
        log.warning(f"{line}, or its header is inexact")
    elif is_local and (doubt := _doubt(path, is_counted)):
        log.info(f"{address} {doubt}")


def is_video(path: Path) -> bool:
    """Does the file hold several frames of a video, whatever it is called? An image that only FFmpeg reads has one."""
    with plain_path(path, has_suffix=False) as opened:
        if cv2.haveImageReader(opened):
            return False
        capture = cv2.VideoCapture(opened, cv2.CAP_FFMPEG)
        return bool(capture.read()[0] and capture.read()[0])


def _doubt(path: Path, is_counted: bool) -> str:
    """What to say about the end of a file that was read without an error; empty for nothing."""
    with path.open("rb") as file:
        head, size = file.read(1024), os.fstat(file.fileno()).st_size
    for packet in PACKETS:
        if set(head[4 if packet == 192 else 0 :: packet]) == {0x47}:
            if size % packet:
                return "ends within a packet: it is cut, and how much is missing can't be told"
            is_counted = False
    if is_counted and not head.startswith(UNCOUNTED):
        return ""
    return "does not say how many frames it has: whether its end is missing can't be told"


class VideoFile:
    """A video that frames are written into, MPEG-4, begun with the first frame and of its size."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path, self._rate, self._count = path, frames_per_second, 0
        self._writer: cv2.VideoWriter | None = None

    def write(self, image: np.ndarray) -> None:
        """Add a frame, uint8 RGB (H, W, 3); one of another size is resized, since a stream may change.

        Raises UserError if the file can't be begun, at the first frame only.
        """
        self._count += 1
        if self._count == 1:
            self._size_wh = image.shape[1::-1]
            self._begin()
        if self._writer is not None:
            pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            self._writer.write(pixels if pixels.shape[1::-1] == self._size_wh else cv2.resize(pixels, self._size_wh))

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.release()

    def check(self) -> None:
        """Raises UserError if not all frames are in the closed file: the writer itself doesn't say so."""
        if self._writer is not None:
            with plain_path(self._path) as opened:
                written = int(cv2.VideoCapture(opened).get(cv2.CAP_PROP_FRAME_COUNT))
            if written != self._count:
                raise UserError(f"cannot write all of the video {self._path}: is the disk full?")

    def _begin(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        with plain_path(self._path) as opened:  # the writer keeps the file open
            writer = cv2.VideoWriter(opened, cv2.VideoWriter.fourcc(*"mp4v"), self._rate, self._size_wh)
        if not writer.isOpened():
            width, height = self._size_wh
            raise UserError(
                f"cannot write the video {self._path} of {width}x{height} pixels: MPEG-4 has 2 to 8,191 a side; "
                "otherwise look whether its folder can be written to"
            )
        self._writer = writer
