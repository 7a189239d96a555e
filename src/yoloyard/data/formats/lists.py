"""List files: which images their lines mean."""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from yoloyard.common.errors import UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.label_files import label_suffixes
from yoloyard.data.formats.labels import decoded
from yoloyard.data.formats.layout import find_path, folders_named, is_image, spellings
from yoloyard.data.formats.table import IMAGE_FOLDERS, image_formats


@dataclass
class Listed:
    """What a list file leads to."""

    images: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # lines that lead to no file, or to several
    watched: set[str] = field(default_factory=set)  # the folders where images were looked for


def read_list(list_file: Path, roots: tuple[Path, ...]) -> Listed:
    """The images named by a text file, one a line, below one of `roots` or beside the file.

    Below a folder ImageSets, lines are first looked for in the folder JPEGImages or images beside it, with or without
    a suffix, as Pascal VOC has them. Raises UserError if it isn't a text file.
    """
    try:
        lines = decoded(list_file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_file} is neither a folder nor a text file that lists images ({error})") from error
    listed, mentioned = Listed(), set[str]()
    voc_folder = _voc_folder_of(list_file)
    by_stem = functools.cache(_images_by_stem)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        readings = _readings(line.strip())
        if voc_folder is not None and (found := _voc_images(readings, voc_folder, by_stem)):
            listed.images.append(found[0])
            listed.watched.add(os.path.dirname(found[0]))
            if len(found) > 1:
                what = f"it may be {' or '.join(map(os.path.basename, found))}; the first is taken"
                listed.problems.append(Problem("label of two images", f"{list_file}:{number}", what))
            continue
        is_beside = readings[-1].startswith("./")
        folders = (list_file.parent, *roots) if is_beside else (*roots, list_file.parent)
        places = [str(find_path(each, folders)) for each in readings]
        image = next(filter(os.path.isfile, places), places[-1])
        mentioned.update(readings)
        if os.path.isfile(image):
            listed.images.append(image)
        else:
            looked = voc_folder / f"{readings[-1]}.jpg" if voc_folder is not None else image
            listed.problems.append(Problem("image missing", f"{list_file}:{number}", f"there is no image {looked}"))
    below = folders_named(mentioned)
    for folder in (list_file.parent, *roots, *([] if voc_folder is None else [voc_folder])):
        listed.watched |= {os.path.normpath(folder / each) for each in below}
    if voc_folder is not None:
        listed.watched.add(str(voc_folder))
    return listed


def _voc_folder_of(list_file: Path) -> Path | None:
    """The folder of images that a list below a folder ImageSets speaks of."""
    above = next((folder.parent for folder in list_file.parents[:2] if folder.name == "ImageSets"), None)
    if above is None:
        return None
    places = [above / name for name in reversed(IMAGE_FOLDERS)]
    return next((place for place in places if os.path.isdir(place)), places[0])


def _readings(line: str) -> list[str]:
    """What a line of a list may name: all of it, without quotes, without a second column.

    That is a label file, or a class's 1, 0 or -1 of Pascal VOC: whether the image has it.
    """
    first = re.sub(r"""\s+(-?1|0|\S+\.(?i:xml|txt)["']?)$""", "", line)
    return list(dict.fromkeys(filter(None, (line, line.strip("\"'"), first.strip("\"'")))))


def _voc_images(readings: list[str], voc_folder: Path, by_stem: Callable[[str], dict[str, list[str]]]) -> list[str]:
    """The image that a line of a list of Pascal VOC means; several that differ in their suffix; none.

    It names a file below `voc_folder`, mostly without a suffix, sometimes with its own or the label's, and with a
    folder.
    """
    own_folders = "|".join((*IMAGE_FOLDERS, *(name for form in image_formats() for name in form.label_folders)))
    for text in readings:
        for each in spellings(text):
            for place in (each, re.sub(rf"^(.*/)?({own_folders})/", "", each)):
                folder, name = os.path.split(os.path.join(voc_folder, place))
                stem, suffix = os.path.splitext(name)
                is_label = suffix.lower() in label_suffixes()
                same = [each for each in by_stem(folder).get(stem, ()) if is_label or each.lower() == name.lower()]
                if found := by_stem(folder).get(name) or same:
                    return [os.path.join(folder, image) for image in found]
    return []


def _images_by_stem(folder: str) -> dict[str, list[str]]:
    """The images in `folder` by their names with and without suffix."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(filter(is_image, os.listdir(folder))) if os.path.isdir(folder) else []:
        found[os.path.splitext(name)[0]].append(name)
        found[name].append(name)
    return found
