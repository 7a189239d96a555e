"""Images that consist of several files, a channel each: which files belong together.

`files` are texts such as `_a`, `_b`: the name of each file of an image has one of them, before its suffix, and the
names are otherwise the same. With a slash, `top/`, they are folders. The first file stands for the image.
"""

import os
from collections.abc import Sequence
from pathlib import Path


def files_of(path: Path, files: Sequence[str]) -> list[Path]:
    """All files of the image that `path` belongs to, existing or not, one a channel.

    Of several texts in a name the last one counts, and the longer one of two that end together. Where the name has
    none of them, or there are no `files`, `path` is alone.
    """
    if not files:
        return [path]
    has_folders = "/" in files[0]
    text = os.path.abspath(path) if has_folders else path.name
    end = len(text if has_folders else path.stem)
    # A folder's text also begins with a slash, so that `top/` is not the end of `laptop/`.
    marks = [f"/{each}" if has_folders else each for each in files]
    found = [(text.rfind(mark, 0, end) + len(mark), len(mark)) for mark in marks if mark in text[:end]]
    if not found:
        return [path]
    place, length = max(found)
    names = [text[: place - length] + mark + text[place:] for mark in marks]
    if not has_folders:
        return [path.with_name(name) for name in names]
    return [Path(name if path.is_absolute() else os.path.relpath(name)) for name in names]


def first_file(path: Path, files: Sequence[str]) -> Path:
    """The file that stands for the image that `path` belongs to."""
    return files_of(path, files)[0]
