"""Which files are pictures, and where the labels of a picture lie."""

from __future__ import annotations

import os
from pathlib import Path

from yoloyard.errors import UserError

IMAGE_SUFFIXES = frozenset((".bmp", ".dib", ".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp"))

IMAGE_FOLDERS = ("images", "JPEGImages")
VOC_FOLDERS = ("labels", "Annotations", "annotations")


def images_below(folder: Path) -> list[str]:
    """The picture files in `folder` and all folders below it. Raises UserError if one can't be read."""
    images = []
    seen = set()  # a link that leads upwards would be followed for ever
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable_folder):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        images += [os.path.join(parent, name) for name in files if is_image(name)]
    return images


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
    beside = image.with_suffix(".txt")
    texts = [*_mirrored(beside, IMAGE_FOLDERS[:1], VOC_FOLDERS[:1]), beside]
    tables = [*_mirrored(image.with_suffix(".xml"), IMAGE_FOLDERS, VOC_FOLDERS), image.with_suffix(".xml")]
    return next((path for path in (*texts, *tables) if os.path.exists(path)), texts[0])


def label_path_in(folder: Path, image: Path, images: Path) -> Path:
    """Where the labels of `image`, a file below `images`, are in `folder`: a .txt, or an .xml if only that exists."""
    text = (folder / image.relative_to(images)).with_suffix(".txt")
    table = text.with_suffix(".xml")
    return table if not os.path.exists(text) and os.path.exists(table) else text


def _mirrored(path: Path, image_folders: tuple[str, ...], label_folders: tuple[str, ...]) -> list[Path]:
    folders = path.parts[:-1]
    for position in range(len(folders) - 1, -1, -1):
        if folders[position] in image_folders:
            rest = (*folders[position + 1 :], path.name)
            return [Path(*folders[:position], label_folder, *rest) for label_folder in label_folders]
    return []


def _unreadable_folder(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error
