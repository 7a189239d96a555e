"""From a data.yaml's entries to files: which images there are and where their labels lie."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.coco_json import CocoFile, file_names_in, read_coco_file
from yoloyard.data.formats.data_yaml import DataSpec, Entry, find_path
from yoloyard.data.formats.labels import Labels, decoded
from yoloyard.data.formats.layout import (
    IMAGE_FOLDERS,
    LABEL_SUFFIXES,
    VOC_FOLDERS,
    find_label,
    in_forms,
    is_image,
    label_folders,
    search_folder,
    spellings,
)
from yoloyard.data.formats.voc_xml import parse_voc
from yoloyard.data.formats.yolo_txt import parse_plain_yolo, parse_yolo
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES

PARSED_AT_ONCE = 2**20  # bytes of label files; their words take about twenty times as much meanwhile
NOT_LABELS = ("classes.txt",)  # what programs for labelling leave beside them


@dataclass(frozen=True)
class SourceImage:
    """An image with a label file of its own."""

    path: Path
    labels: Path  # .txt or .xml, existing or not


@dataclass
class Sources:
    """The files of a split."""

    images: list[SourceImage] = field(default_factory=list)  # sorted by path, each once
    folder: Path = Path()  # that holds all of `images`; their names start from it
    coco: list[CocoFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # lines that lead to no file, labels without an image
    watched: set[str] = field(default_factory=set)  # all folders whose content decides what else is in here
    lists: set[str] = field(default_factory=set)  # so do these files

    def label_place(self) -> Path:
        """Where the labels of the first image are looked for."""
        return self.coco[0].path if self.coco else self.images[0].labels


def find_sources(spec: DataSpec, split: str) -> Sources:
    """The files of a split. Folders are searched as `search_folder` does; images are told by their suffix.

    COCO JSON files are read, but not parsed.
    Raises UsageError if the split is not in the data.yaml, UserError if an entry does not exist or there is no image.
    """
    if split not in spec.splits:
        there = ", ".join(spec.splits)
        raise UsageError(f"{spec.path} has no {split!r}; it names {there}")
    sources = Sources()
    labels_of: dict[str, Path] = {}
    folders: list[str] = []  # of which `images` come
    for entry in spec.splits[split]:
        for path in filter(None, (entry.path, entry.labels)):
            if not os.path.exists(path):
                raise UserError(f"{spec.path}: {split} is {path}, which does not exist")
        if entry.coco is not None:
            sources.coco.append(_find_coco(entry, entry.coco, spec, split, sources))
            continue
        if os.path.isdir(entry.path):
            search = search_folder(entry.path)
            images = search.files
            sources.watched.update(search.folders)
            if line := search.passed_over():
                sources.problems.append(Problem("passed over", str(entry.path), line))
            folders.append(str(entry.path))
        else:
            if entry.labels is not None:
                raise UserError(f"{spec.path}: {split} has images: {entry.path}, which is not a folder")
            is_single = entry.path.suffix.lower() in IMAGE_SUFFIXES
            images = [str(entry.path)] if is_single else _images_listed(entry.path, spec, sources)
            folders += {os.path.dirname(image) for image in images}
            sources.watched.update(os.path.dirname(image) for image in images)
        labels_of |= _label_paths(images, entry, sources.watched, labels_of)
    if not labels_of and not sources.coco:
        where = ", ".join(str(entry.path) for entry in spec.splits[split])
        reason = f"; first problem: {sources.problems[0]}" if sources.problems else ""
        raise UserError(f"no images for {split!r} in {where} ({', '.join(sorted(IMAGE_SUFFIXES))} count){reason}")
    sources.images = [SourceImage(Path(image), labels_of[image]) for image in sorted(labels_of)]
    sources.problems += _shared_labels(sources.images)
    if folders:
        sources.folder = Path(os.path.commonpath(folders))
    # Labels that a list file doesn't mention are no mistake, and a folder that is named may serve several splits.
    if all(entry.coco is None and entry.labels is None and os.path.isdir(entry.path) for entry in spec.splits[split]):
        sources.problems += _labels_without_image(sources.images)
    return sources


def parse_label_files(
    files: Sequence[tuple[Path, bytes]],
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    keypoint_values: int = 0,
) -> list[Labels]:
    """The labels of N .txt and .xml files, each with its content, for images of `sizes` (height, width).

    `keypoint_values`: how many numbers of keypoints follow the box in a row of text.
    """
    labels: list[Labels] = []
    shares = np.cumsum([len(content) for _, content in files]) // PARSED_AT_ONCE
    for _, share in itertools.groupby(range(len(files)), key=lambda number: shares[number]):
        numbers = list(share)
        some, some_sizes = [files[number] for number in numbers], [sizes[number] for number in numbers]
        is_text = [path.suffix.lower() != ".xml" for path, _ in some]
        texts = [content for (_, content), own in zip(some, is_text, strict=True) if own]
        text_sizes = np.array([size for size, own in zip(some_sizes, is_text, strict=True) if own]).reshape(-1, 2)
        plain = iter(parse_plain_yolo(texts, len(names), text_sizes))
        for (path, content), size, own in zip(some, some_sizes, is_text, strict=True):
            if own:
                labels.append(next(plain) or parse_yolo(path, content, len(names), size, keypoint_values))
            else:
                labels.append(parse_voc(path, content, names, size))
    return labels


def _label_paths(images: list[str], entry: Entry, watched: set[str], known: dict[str, Path]) -> dict[str, Path]:
    """The label file of each image that isn't `known` yet; `watched` is joined by the folders that they may be in."""
    found: dict[str, Path] = {}
    places: dict[str, tuple[list[Path], list[Path]]] = {}  # of labels, for each folder of images
    listed: dict[Path, dict[str, str]] = {}
    for image in images:
        if image in known:
            continue
        folder, name = os.path.split(image)
        if folder not in places:
            if entry.labels is None:
                places[folder] = label_folders(Path(folder))
            else:
                mirrored = [entry.labels / form for form in in_forms(str(Path(folder).relative_to(entry.path)))]
                places[folder] = mirrored, mirrored
            watched.update(str(place) for place in itertools.chain(*places[folder]))
        found[image] = find_label(os.path.splitext(name)[0], places[folder], listed)
    return found


def _shared_labels(listed: list[SourceImage]) -> list[Problem]:
    """Label files that belong to several images by their name."""
    counts = Counter(str(image.labels) for image in listed)
    images_of: dict[str, list[str]] = defaultdict(list)
    if len(counts) < len(listed):
        for image in listed:
            if counts[str(image.labels)] > 1:
                images_of[str(image.labels)].append(image.path.name)
    return [
        Problem("label of two images", labels, f"it is the label file of {' and '.join(images)}; each gets its boxes")
        for labels, images in images_of.items()
        if os.path.exists(labels)
    ]


def _labels_without_image(images: list[SourceImage]) -> list[Problem]:
    known = {os.path.splitext(image.labels)[0] for image in images}
    folders = {os.path.dirname(image.labels) for image in images}
    problems = []
    for folder in sorted(folders):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            stem, suffix = os.path.splitext(os.path.join(folder, name))
            if suffix.lower() in LABEL_SUFFIXES and stem not in known and name not in NOT_LABELS and name[0] != ".":
                problems.append(Problem("label without image", stem + suffix, "there is no image for it"))
    return problems


def _find_coco(entry: Entry, path: Path, spec: DataSpec, split: str, sources: Sources) -> CocoFile:
    content = read_coco_file(path)
    names = file_names_in(path, content)
    if not names:
        raise UserError(f"{path}: no images for {split!r}; COCO JSON lists images, each with a file_name")
    folders = [entry.path, entry.path.parent] if entry.labels is not None else _coco_folders(path, spec.root, split)
    there = [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]
    sources.lists.add(str(path))
    below = _folders_named(names)
    sources.watched |= {os.path.join(folder, each) for folder in folders for each in below}
    for name in names:
        for folder in there:
            if any(os.path.isfile(folder / each) for each in spellings(name)):
                return CocoFile(path, content, names, folder)
    looked = ", ".join(map(str, dict.fromkeys(folders)))
    raise UserError(
        f"none of the {len(names)} images of {path} is there; {names[0]} was looked for in {looked}; "
        f"say where they are with {split}: {{images: FOLDER, labels: {path.name}}}"
    )


def _coco_folders(path: Path, root: Path, split: str) -> list[Path]:
    """Where the images of a COCO JSON may be: beside it, a folder higher, at the data.yaml's root."""
    own = path.stem.removeprefix("instances_")
    below = ("", "images", f"images/{split}", f"images/{own}", own, split)
    return [folder / name for folder in (path.parent, path.parent.parent, root) for name in below]


def _images_listed(list_file: Path, spec: DataSpec, sources: Sources) -> list[str]:
    """The images named by a text file, one a line; lines whose file does not exist go to the problems of `sources`.

    Below a folder ImageSets, lines are first looked for in the folder JPEGImages or images beside it, with or without
    a suffix, as Pascal VOC has them.
    """
    try:
        lines = decoded(list_file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_file} is neither a folder nor a text file that lists images ({error})") from error
    voc_folder = _voc_folder_of(list_file)
    sources.lists.add(str(list_file))
    if voc_folder is not None:
        sources.watched.add(str(voc_folder))
    by_stem = functools.cache(_images_by_stem)
    images = []
    mentioned: set[str] = set()
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        readings = _readings(entry)
        if voc_folder is not None and (found := _voc_images(readings, voc_folder, by_stem)):
            images.append(found[0])
            sources.watched.add(os.path.dirname(found[0]))
            if len(found) > 1:
                what = f"it may be {' or '.join(map(os.path.basename, found))}; the first is taken"
                sources.problems.append(Problem("label of two images", f"{list_file}:{number}", what))
            continue
        if readings[-1].startswith("./"):
            folders = (list_file.parent, spec.root, spec.path.parent)
        else:
            folders = (spec.root, spec.path.parent, list_file.parent)
        places = [str(find_path(each, folders)) for each in readings]
        image = next(filter(os.path.isfile, places), places[-1])
        mentioned.update(readings)
        if os.path.isfile(image):
            images.append(image)
        else:
            looked = voc_folder / f"{readings[-1]}.jpg" if voc_folder is not None else image
            sources.problems.append(Problem("image missing", f"{list_file}:{number}", f"there is no image {looked}"))
    below = _folders_named(mentioned)
    for folder in (list_file.parent, spec.root, spec.path.parent, *([] if voc_folder is None else [voc_folder])):
        sources.watched |= {os.path.normpath(folder / each) for each in below}
    return images


def _folders_named(entries: Iterable[str]) -> set[str]:
    """The folders that these files may be in, as their names say."""
    return {os.path.dirname(each) for entry in entries for each in spellings(entry)}


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
    own_folders = "|".join((*IMAGE_FOLDERS, *VOC_FOLDERS))
    for text in readings:
        for each in spellings(text):
            for place in (each, re.sub(rf"^(.*/)?({own_folders})/", "", each)):
                folder, name = os.path.split(os.path.join(voc_folder, place))
                stem, suffix = os.path.splitext(name)
                is_label = suffix.lower() in LABEL_SUFFIXES
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
