"""Where images to predict come from: files, folders, globs, videos, camera numbers and stream addresses."""

import functools
import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import free_name, plain_path
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.common.video import VIDEO_SUFFIXES, UnreadableError, is_video, read_frames
from yoloyard.data.formats.layout import Search, is_marked, is_side_folder, search_folder
from yoloyard.data.pixels.arrays import pixels_of
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES, decode_image
from yoloyard.data.pixels.lights import first_file

log = logging.getLogger(__name__)

WRITTEN_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))


@dataclass(frozen=True)
class Source:
    """Where images come from: a file, a video, or a camera."""

    address: str  # path, camera number, or stream address
    name: str  # of the results, relative to their folder and unlike that of any other source
    is_video: bool
    is_optional: bool = False  # one of many, found in a folder or by a glob: if it fails, the others go on


@dataclass(frozen=True)
class SourceImage:
    """An image to predict: its name for the results and its pixels."""

    name: str
    source: str
    image: np.ndarray  # as the network's `PixelSpec` says, of most uint8 RGB (H, W, 3)
    frames_per_second: float = 0.0  # of the video or camera that it is a frame of


def find_sources(arguments: Sequence[str], files: Sequence[str] = ()) -> list[Source]:
    """The single sources that paths, globs, camera numbers and stream addresses name, in order.

    Folders are searched as `search_folder` does; what is passed over is logged. Of images that consist of several
    `files` (see `data.pixels.lights`) each comes once, by its first file.
    Raises UsageError if one of them does not exist or holds nothing.
    """
    if not arguments:
        raise UsageError("say where to look: yoloyard predict --weights FILE IMAGES")
    found: list[tuple[str, Path, bool, bool]] = []  # address, name, is video, is optional
    for argument in map(os.path.expanduser, map(_without_scheme, arguments)):
        path = Path(argument)
        if _is_stream(argument):
            found.append((argument, Path(f"camera{argument}" if argument.isdigit() else "stream"), True, False))
        elif os.path.exists(argument) and not os.path.isdir(argument):
            check_kind(argument)
            found.append((argument, Path(path.name), path.suffix.lower() in VIDEO_SUFFIXES or is_video(path), False))
        else:
            is_folder = os.path.isdir(argument)
            search = search_folder(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES) if is_folder else _search_glob(argument)
            passed_over = search.passed_over()
            if not search.files:
                what = "are no images or videos in the folder" if is_folder else "is no image, video or folder"
                reason = f"; {passed_over}" if passed_over else ""
                raise UsageError(f"there {what} {argument or repr(argument)}{reason}")
            if passed_over:
                log.info(f"{argument}: {passed_over}")
            for file in sorted(map(Path, search.files)):
                name = file.relative_to(argument) if is_folder else Path(file.name)
                found.append((str(file), name, file.suffix.lower() in VIDEO_SUFFIXES, True))
    if files:
        images: dict[Path, tuple[str, Path, bool, bool]] = {}
        for address, name, has_frames, is_optional in found:
            path = Path(address)
            first = path if has_frames else first_file(path, files)
            if path == first or first not in images:
                images[first] = (address if path == first else str(first), name, has_frames, is_optional)
        found = list(images.values())
    taken: set[str] = set()
    sources = []
    for address, name, has_frames, is_optional in found:
        suffix = ".mp4" if has_frames else name.suffix if name.suffix.lower() in WRITTEN_SUFFIXES else ".jpg"
        # Labels have the name without its suffix, so that is what must not be taken twice.
        stem = free_name(str(name.with_suffix("")), suffix, taken)
        sources.append(Source(address, stem + suffix, has_frames, is_optional or len(found) > 1))
    return sources


def images_of(source: Source, pixels: PixelSpec = EIGHT_BITS) -> Iterator[SourceImage]:
    """The image of a file, or the frames of a video or camera, as `pixels` says. Raises UnreadableError."""
    if source.is_video:
        wanted = "" if pixels.takes_colours else f"{pixels.channels} channels"
        if pixels.window and not pixels.percent and pixels.window[1] > 255:
            wanted = "values from {:g} to {:g}".format(*pixels.window)
        if wanted:
            line = f"{source.address}: frames are RGB of 8 bits, and the network takes images of {wanted}"
            raise UnreadableError(f"{line}: save them as image files")
        stem = source.name.removesuffix(".mp4")
        for frame in read_frames(source.address, _is_stream(source.address)):
            name, origin = f"{stem}/{frame.number:06d}.jpg", f"{source.name}#{frame.number}"
            yield SourceImage(name, origin, pixels_of(frame.image, pixels), frame.frames_per_second)
        return
    try:
        image = decode_image(Path(source.address), pixels=pixels)
    except UserError as error:
        raise UnreadableError(str(error)) from error
    with plain_path(Path(source.address)) as opened:
        count = cv2.imcount(opened) if pixels.takes_colours else 1  # of other channels it writes errors to the terminal
    if count > 1:
        log.info(f"{source.address}: the first of {count} frames or pages is taken")
    yield SourceImage(source.name, source.address, image)


def check_kind(path: str) -> None:
    """Raises UsageError for what may be waited for without end."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        hint = "; a camera is named by its number" if path.startswith("/dev/video") else ""
        raise UsageError(f"{path} is a pipe, a socket or a device: name a file or a folder{hint}")


def _without_scheme(argument: str) -> str:
    """The path of an address such as file:///home/ada/a%20b.mp4; any other text as it is."""
    match = re.fullmatch(r"(?i:file:(?://(?:localhost)?)?)(/.*)", argument, re.DOTALL)
    if match is None or os.path.exists(argument):
        return argument
    path = match[1]
    return path if os.path.exists(path) else unquote(path, errors="surrogateescape")


def _is_stream(address: str) -> bool:
    return ("://" in address or address.isdecimal()) and not os.path.exists(address)


def _search_glob(pattern: str) -> Search:
    """The files of a pattern such as **/*.jpg, in order, without those in a folder that `search_folder` passes over."""
    search = Search()
    named = ("", *Path(pattern).parts)
    marked = functools.cache(lambda folder: is_marked(os.listdir(folder)))
    for path in sorted(map(Path, glob.glob(pattern, recursive=True))):
        below = [each for each in path.parents if each.name not in named]
        side = next((str(each) for each in reversed(below) if is_side_folder(each.name) or marked(each)), None)
        if side is None and not path.is_dir():
            search.take(str(path), IMAGE_SUFFIXES | VIDEO_SUFFIXES, path.is_file())
        elif side is not None and side not in search.other_folders:
            search.other_folders.append(side)
    return search
