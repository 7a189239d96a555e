"""Videos and cameras: their frames one by one, and the videos that are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yoloyard.errors import UserError
from yoloyard.files import cannot_write, plain_path

# What FFmpeg, which OpenCV's packages contain, reads as a video by itself; audio, subtitles and playlists left out.
VIDEO_SUFFIXES = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265",
    ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm",
    ".wmv", ".wtv", ".xvid", ".y4m",
))  # fmt: skip
USUAL_RATE = 25.0  # frames a second, where nothing credible is said
FILE_RATES = (0.01, 65535)  # those that an MPEG-4 file can have
LIVE_RATES = (1, 240)  # cameras and streams say all kinds of things
FAILED_READS = 1000  # in a row, after which a file is at its end
# What a sound file may lack: trimmed ones hold frames before their beginning, and some counts follow from the duration.
TOLERATED_SHARE, TOLERATED_FRAMES = 0.1, 2


class UnreadableError(UserError):
    """An image or video can't be read, or not all of it."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video: its number from 0, and how many come a second."""

    number: int
    image: np.ndarray  # uint8 RGB (H, W, 3)
    frames_per_second: float


def read_frames(address: str, is_live: bool, say: Callable[[str], None]) -> Iterator[Frame]:
    """The frames of a video file, or of a camera (a number) or stream if `is_live`, turned as the file says.

    A frame that can't be decoded is passed over. At the end raises UnreadableError if there was no frame, if frames
    in between are missing, or more than a tenth of what the file claims, or if a live source has ended. `say` is told
    in a line of fewer missing frames, and of a rate that can't be.
    """
    with nullcontext(address) if is_live else plain_path(Path(address)) as opened:
        capture = cv2.VideoCapture(int(opened) if is_live and opened.isdecimal() else opened)
        try:
            rate, claimed = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            slowest, fastest = LIVE_RATES if is_live else FILE_RATES
            if not slowest <= rate <= fastest:
                if not is_live and capture.isOpened():
                    say(f"warning: {address} says {rate:g} frames a second: {USUAL_RATE:g} are assumed")
                rate = USUAL_RATE
            count = skipped = failed = 0
            while failed <= (0 if is_live else FAILED_READS):
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
    # An unknown count is a huge or a negative number.
    missing = max(skipped, int(claimed) - count if 0 < claimed < 2**31 else 0)
    line = f"{address}: {missing} of {count + missing} frames are missing; the video is damaged or cut"
    if skipped or missing > max(TOLERATED_FRAMES, TOLERATED_SHARE * claimed):
        raise UnreadableError(line)
    if missing:
        say(f"warning: {line}, or its header is inexact")


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
            self._writer = self._begin()
        if self._writer is None:
            return  # as was said at the first frame
        pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if pixels.shape[1::-1] != self._size_wh:
            pixels = cv2.resize(pixels, self._size_wh)
        self._writer.write(pixels)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.release()

    def check(self) -> None:
        """Raises UserError if not all frames are in the closed file: the writer itself doesn't say so."""
        if self._writer is None:
            return
        with plain_path(self._path) as opened:
            capture = cv2.VideoCapture(opened)
            written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            capture.release()
        if written != self._count:
            raise UserError(f"cannot write all of the video {self._path}: is the disk full?")

    def _begin(self) -> cv2.VideoWriter:
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
        return writer
