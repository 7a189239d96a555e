"""What a data.yaml says of its images' pixels: `channels`, `bits`, `window` and `files`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.common.pixel_spec import PixelSpec

PIXEL_KEYS = ("channels", "bits", "window", "files")


def read_pixel_keys(path: Path, tree: Mapping[Any, Any], texts: Mapping[Any, Any]) -> tuple[PixelSpec, int | None]:
    """The images of a data.yaml and, apart, its bits; None: the images decide.

    `tree` is the file by the rules of YAML, `texts` the same with all scalars as texts. Raises UsageError naming the
    file and the key that is wrong.
    """
    files = _files(path, texts["files"]) if tree.get("files") is not None else ()
    channels = str(tree.get("channels", len(files) or 3)).strip()
    if not re.fullmatch("[1-9][0-9]*", channels):
        raise UsageError(f"{path}: channels must be a whole number such as 1 or 3, not {tree['channels']!r}")
    if files and len(files) != int(channels):
        raise UsageError(f"{path}: channels is {channels} but files names {len(files)}; each is one channel")
    bits = tree.get("bits")
    if bits not in (None, 8, 16) or isinstance(bits, bool | float):
        raise UsageError(f"{path}: bits must be 8 or 16, those of the pixels in memory, not {bits!r}")
    window, percent = _window(path, tree["window"]) if tree.get("window") is not None else (None, False)
    return PixelSpec(int(channels), bits or 8, window, percent, files), bits


def pixel_keys(pixels: PixelSpec, bits: int | None) -> dict[str, Any]:
    """What a data.yaml must say so that `read_pixel_keys` gives these."""
    ends = pixels.window and [f"{end:g}%" if pixels.percent else end for end in pixels.window]
    found = {"channels": pixels.channels, "bits": bits, "window": ends, "files": list(pixels.files)}
    return {key: value for key, value in found.items() if value and (key, value) != ("channels", 3)}


def _window(path: Path, value: Any) -> tuple[tuple[float, float], bool]:
    """The two ends, and whether they are percentiles."""
    ends = value if isinstance(value, list) else []
    signs = [isinstance(end, str) and end.strip().endswith("%") for end in ends]
    try:
        numbers = [float(end.strip().removesuffix("%") if isinstance(end, str) else end) for end in ends]
    except (TypeError, ValueError):
        numbers = []
    wanted = "[low, high], values of the files such as [0, 4095] or percentiles such as [1%, 99%]"
    if len(numbers) != 2 or signs[0] != signs[1] or any(isinstance(end, bool) for end in ends):
        raise UsageError(f"{path}: window must be {wanted}, not {value!r}")
    low, high = numbers
    most = 100 if signs[0] else 65535
    if not 0 <= low < high <= most:
        raise UsageError(f"{path}: window is {value!r}: low must be below high, both from 0 to {most}")
    return (low, high), signs[0]


def _files(path: Path, value: Any) -> tuple[str, ...]:
    files = value if isinstance(value, list) else []
    if len(files) < 2 or not all(isinstance(text, str) and text.strip("/") for text in files):
        wanted = "a list of two or more parts of names, such as [_a, _b], or of folders, [top/, left/]"
        raise UsageError(f"{path}: files must be {wanted}, not {value!r}")
    if len(set(files)) < len(files):
        raise UsageError(f"{path}: files names one part twice: {', '.join(files)}")
    folders = [text for text in files if "/" in text]
    if folders and (len(folders) < len(files) or not all(text.endswith("/") for text in folders)):
        raise UsageError(f"{path}: files must be parts of names or folders, each ending with a slash, not {value!r}")
    return tuple(text.lstrip("/") for text in files)
