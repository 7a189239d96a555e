"""Which files are pictures, and where the labels of a picture lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from yoloyard.errors import UserError

IMAGE_SUFFIXES = frozenset((".bmp", ".dib", ".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp"))

IMAGE_FOLDERS = ("images", "JPEGImages")
VOC_FOLDERS = ("labels", "Annotations", "annotations")


def images_below(folder: Path) -> list[str]:
    """The picture files in `folder` and all folders below it. Raises UserError if one can't be read."""
    return [image for _, images in folders_below(folder) for image in images]


def folders_below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """`folder` and all folders below it, each with its picture files. Raises UserError if one can't be read."""
    seen = set()  # a link that leads upwards would be followed for ever
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable_folder):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield parent, [os.path.join(parent, name) for name in files if is_image(name)]


def is_image(name: str) -> bool:
    """Whether a file of this name counts as a picture."""
    # Names that begin with a dot are other systems' side files, such as `._picture.jpg`.
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def label_path(image: Path) -> Path:
    """Where the labels of `image` are: the last folder `images` of its path replaced by `labels`, suffix .txt.

    Without such a folder, or if only the other file exists, it is the text file beside the image. If there is no text
    file, it is a Pascal VOC file of suffix .xml: the last folder `images` or `JPEGImages` replaced by `labels`,
    `Annotations` or `annotations`, or beside the image. If there is none at all, it is the text file's first place.
    """
    texts, tables = label_folders(image.parent)
    text, table = f"{image.stem}.txt", f"{image.stem}.xml"
    places = [*(folder / text for folder in texts), *(folder / table for folder in tables)]
    return next((path for path in places if os.path.exists(path)), places[0])


def label_folders(images: Path) -> tuple[list[Path], list[Path]]:
    """Where label files of pictures in the folder `images` may be: text files, and Pascal VOC files; best first."""
    texts = [*_mirrored(images, IMAGE_FOLDERS[:1], VOC_FOLDERS[:1]), images]
    return texts, [*_mirrored(images, IMAGE_FOLDERS, VOC_FOLDERS), images]


def label_path_in(folder: Path, image: Path, images: Path) -> Path:
    """Where the labels of `image`, a file below `images`, are in `folder`: a .txt, or an .xml if only that exists."""
    text = (folder / image.relative_to(images)).with_suffix(".txt")
    table = text.with_suffix(".xml")
    return table if not os.path.exists(text) and os.path.exists(table) else text


def _mirrored(folder: Path, image_folders: tuple[str, ...], label_folders: tuple[str, ...]) -> list[Path]:
    parts = folder.parts
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] in image_folders:
            return [Path(*parts[:position], label_folder, *parts[position + 1 :]) for label_folder in label_folders]
    return []


def _unreadable_folder(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error
