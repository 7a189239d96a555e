"""The label file of an image: where it is, and what such files say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from yoloyard.common.errors import UserError
from yoloyard.data.formats.labels import Labels, composed
from yoloyard.data.formats.layout import in_forms
from yoloyard.data.formats.table import image_formats

Places = list[tuple[str, list[Path]]]  # suffixes of label files, each with folders; best first


def label_path(image: Path) -> Path:
    """Where the labels of `image` are: the last folder `images` of its path replaced by `labels`, suffix .txt.

    Without such a folder, or if only the other file exists, it is the text file beside the image. If there is no text
    file, it is a Pascal VOC file of suffix .xml: the last folder `images` or `JPEGImages` replaced by `labels`,
    `Annotations` or `annotations`, or beside the image. If there is none at all, it is the text file's first place.
    Raises UserError if a folder can't be read.
    """
    return find_label(image.stem, label_places(image.parent), {})


def label_places(folder: Path, images: Path | None = None, labels: Path | None = None) -> Places:
    """Where label files of images in `folder` may be; `labels` has the same folders as `images`, if it is given."""
    formats = image_formats()
    if images is not None and labels is not None:
        mirrored = [labels / form for form in in_forms(str(folder.relative_to(images)))]
        return [(each.suffix, mirrored) for each in formats]
    return [(each.suffix, [*_mirrored(folder, each.image_folders, each.label_folders), folder]) for each in formats]


def find_label(stem: str, places: Places, known: dict[Path, dict[str, str]]) -> Path:
    """The label file of the image called `stem`; its first place if there is none.

    `known` holds what is in each folder, and is filled: thousands of images share a folder, which is listed once.
    Raises UserError if a folder can't be read.
    """
    for suffix, folders in places:
        name = stem + suffix
        for folder in folders:
            if folder not in known:
                known[folder] = _label_files(folder)
            found = known[folder].get(name)
            if found is None and not name.isascii():
                found = known[folder].get(composed(name))
            if found is not None:
                return Path(folder, found)
    suffix, folders = places[0]
    return Path(folders[0], stem + suffix)


def label_suffixes() -> frozenset[str]:
    """The suffixes of label files of images, in small letters."""
    return frozenset(each.suffix for each in image_formats())


def parse_label_files(
    files: Sequence[tuple[Path, bytes]],
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    keypoint_values: int = 0,
) -> list[Labels]:
    """The labels of N files, each given with its content, for images of `sizes` (height, width).

    `keypoint_values`: how many numbers of keypoints follow the box in a row of text.
    """
    labels: dict[int, Labels] = {}
    for form in image_formats():
        own = [number for number, (path, _) in enumerate(files) if path.suffix.lower() == form.suffix]
        parsed = form.parse([files[each] for each in own], names, [sizes[each] for each in own], keypoint_values)
        labels |= zip(own, parsed, strict=True)
    return [labels[number] for number in range(len(files))]


def _label_files(folder: Path) -> dict[str, str]:
    """The label files in `folder` by their names, and by these with the suffix in small letters and letters as NFC."""
    suffixes = tuple(label_suffixes())
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(suffixes)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    found = dict(zip(names, names, strict=True))
    for name in names:
        if not (name.isascii() and name.endswith(suffixes)):
            stem, suffix = os.path.splitext(name)
            found.setdefault(composed(stem) + suffix.lower(), name)
    return found


def _mirrored(folder: Path, image_folders: tuple[str, ...], label_folders: tuple[str, ...]) -> list[Path]:
    parts = folder.parts
    last = max((position for position, part in enumerate(parts) if part in image_folders), default=None)
    if last is None:
        return []
    forms = in_forms("/".join(parts[last + 1 :]))
    return [Path(*parts[:last], name, form) for name in label_folders for form in forms]
