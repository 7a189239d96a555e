"""From a data.yaml's entries to files: which images there are and where their labels are."""

import functools
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.data_yaml import DataSpec, Entry
from yoloyard.data.formats.labels import decoded
from yoloyard.data.formats.layout import Places, find_label, find_path, label_places, search_folder, spellings
from yoloyard.data.formats.table import IMAGE_FOLDERS, SplitFormat, image_formats, label_suffixes
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES
from yoloyard.data.pixels.lights import files_of, first_file

NOT_LABELS = ("classes.txt",)  # what programs for labelling leave beside them


@dataclass(frozen=True)
class SourceImage:
    """An image with a label file of its own."""

    path: Path
    labels: Path  # existing or not


@dataclass(frozen=True)
class SplitFile:
    """A file with the labels of many images, as bytes: parsing them is often spared, since an index is kept."""

    path: Path
    format: SplitFormat
    content: bytes
    file_names: list[str]  # those of its images, and perhaps others that it mentions
    folder: Path  # where its images are

    def image(self, file_name: str) -> Path:
        """Where the image of this `file_name` is, in one of its spellings; or would be."""
        places = (os.path.join(self.folder, each) for each in spellings(file_name))
        return Path(next(filter(os.path.isfile, places), os.path.join(self.folder, file_name)))


@dataclass
class Sources:
    """The files of a split."""

    images: list[SourceImage] = field(default_factory=list)  # sorted by path, each once
    folder: Path = Path()  # that holds all of `images`; their names start from it
    split_files: list[SplitFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # lines that lead to no file, labels without an image
    watched: set[str] = field(default_factory=set)  # all folders whose content decides what else is in here
    lists: set[str] = field(default_factory=set)  # so do these files


def find_sources(spec: DataSpec, split: str) -> Sources:
    """The files of a split. Folders are searched as `search_folder` does; images are told by their suffix.

    Raises UsageError if the split is not in the data.yaml, UserError if an entry does not exist or there is no image.
    """
    if split not in spec.splits:
        raise UsageError(f"{spec.path} has no {split!r}; it names {', '.join(spec.splits)}")
    sources, entries, files = Sources(), spec.splits[split], spec.pixels.files
    labels_of: dict[str, Path] = {}
    folders: list[str] = []  # of which `images` come
    for entry in entries:
        for path in filter(None, (entry.path, entry.labels)):
            if not os.path.exists(path):
                raise UserError(f"{spec.path}: {split} is {path}, which does not exist")
        if entry.format is not None:
            sources.lists.add(str(entry.place))
            sources.split_files.append(_find_split_file(entry, entry.format, spec, split, sources.watched))
            continue
        if entry.labels is not None and not os.path.isdir(entry.path):
            raise UserError(f"{spec.path}: {split} has images: {entry.path}, which is not a folder")
        images = _images_of(entry, spec, sources)
        if files:
            images = list(dict.fromkeys(str(first_file(Path(image), files)) for image in images))
        folders += [str(entry.path)] if os.path.isdir(entry.path) else {os.path.dirname(image) for image in images}
        places: dict[str, Places] = {}  # for each folder of images
        listed: dict[Path, dict[str, str]] = {}
        for folder, name in (os.path.split(image) for image in images if image not in labels_of):
            if folder not in places:
                places[folder] = label_places(Path(folder), entry.path, entry.labels)
                sources.watched.update(str(place) for _, own in places[folder] for place in own)
            labels_of[os.path.join(folder, name)] = find_label(os.path.splitext(name)[0], places[folder], listed)
    if not labels_of and not sources.split_files:
        where = ", ".join(str(entry.path) for entry in entries)
        reason = f"; first problem: {sources.problems[0]}" if sources.problems else ""
        raise UserError(f"no images for {split!r} in {where} ({', '.join(sorted(IMAGE_SUFFIXES))} count){reason}")
    images_of: dict[Path, list[str]] = defaultdict(list)
    for image, labels in sorted(labels_of.items()):
        sources.images.append(SourceImage(Path(image), labels))
        images_of[labels].append(os.path.basename(image))
    for labels, own in images_of.items():
        if len(own) > 1 and os.path.exists(labels):
            what = f"it is the label file of {' and '.join(own)}; each gets its boxes"
            sources.problems.append(Problem("label of two images", str(labels), what))
    if files:
        named = (file.image(name) for file in sources.split_files for name in file.file_names)
        firsts = [*map(Path, labels_of), *named]
        sources.watched.update(os.path.dirname(each) for image in firsts for each in files_of(image, files))
    if folders:
        sources.folder = Path(os.path.commonpath(folders))
    # Labels that a list file doesn't mention are no mistake, and a folder that is named may serve several splits.
    if all(each.format is None and each.labels is None and os.path.isdir(each.path) for each in entries):
        sources.problems += _labels_without_image(sources.images)
    return sources


def _images_of(entry: Entry, spec: DataSpec, sources: Sources) -> list[str]:
    """The images of a folder, of a list file, or a single one; what was passed over or watched goes to `sources`."""
    if os.path.isdir(entry.path):
        search = search_folder(entry.path)
        sources.watched.update(search.folders)
        if line := search.passed_over():
            sources.problems.append(Problem("passed over", str(entry.path), line))
        return search.files
    images = [str(entry.path)]
    if entry.path.suffix.lower() not in IMAGE_SUFFIXES:
        images = _images_listed(entry.path, (spec.root, spec.path.parent), sources)
    sources.watched.update(os.path.dirname(image) for image in images)
    return images


def _labels_without_image(images: list[SourceImage]) -> list[Problem]:
    known = {os.path.splitext(image.labels)[0] for image in images}
    problems, suffixes = [], label_suffixes()
    for folder in sorted({os.path.dirname(image.labels) for image in images}):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            stem, suffix = os.path.splitext(os.path.join(folder, name))
            if suffix.lower() in suffixes and stem not in known and name not in NOT_LABELS and name[0] != ".":
                problems.append(Problem("label without image", stem + suffix, "there is no image for it"))
    return problems


def _find_split_file(entry: Entry, form: SplitFormat, spec: DataSpec, split: str, watched: set[str]) -> SplitFile:
    path = entry.place
    content = form.read(path)
    names = form.file_names(path, content)
    if not names:
        raise UserError(f"{path}: no images for {split!r}; COCO JSON lists images, each with a file_name")
    if entry.labels is not None:
        folders = [entry.path, entry.path.parent]
    else:  # beside the file, a folder higher, at the data.yaml's root
        own = path.stem.removeprefix("instances_")
        below = ("", "images", f"images/{split}", f"images/{own}", own, split)
        above = (path.parent, path.parent.parent, spec.root)
        folders = list(dict.fromkeys(folder / name for folder in above for name in below))
    watched |= {os.path.join(*pair) for pair in itertools.product(folders, _folders_named(names))}
    there = [folder for folder in folders if os.path.isdir(folder)]
    for name, folder in itertools.product(names, there):
        if any(os.path.isfile(folder / each) for each in spellings(name)):
            return SplitFile(path, form, content, names, folder)
    raise UserError(
        f"none of the {len(names)} images of {path} is there; {names[0]} was looked for in "
        f"{', '.join(map(str, folders))}; say where they are with {split}: {{images: FOLDER, labels: {path.name}}}"
    )


def _images_listed(list_file: Path, roots: tuple[Path, ...], sources: Sources) -> list[str]:
    """The images named by a text file, one a line, below one of `roots` or beside the file."""
    try:
        lines = decoded(list_file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_file} is neither a folder nor a text file that lists images ({error})") from error
    voc_folder, by_stem = None, functools.cache(_images_by_stem)
    # Below a folder ImageSets, lines are first looked for beside it, with or without a suffix, as Pascal VOC has them.
    if above := next((folder.parent for folder in list_file.parents[:2] if folder.name == "ImageSets"), None):
        places = [above / name for name in reversed(IMAGE_FOLDERS)]
        voc_folder = next(filter(os.path.isdir, places), places[0])
    images: list[str] = []
    mentioned: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        # It may be quoted, and have a second column: a label file, or whether it has a class of Pascal VOC: 1, 0, -1.
        line, where = line.strip(), f"{list_file}:{number}"
        first = re.sub(r"""\s+(-?1|0|\S+\.(?i:xml|txt)["']?)$""", "", line)
        readings = list(dict.fromkeys(filter(None, (line, line.strip("\"'"), first.strip("\"'")))))
        if voc_folder is not None and (found := _voc_images(readings, voc_folder, by_stem)):
            images.append(found[0])
            if len(found) > 1:
                what = f"it may be {' or '.join(map(os.path.basename, found))}; the first is taken"
                sources.problems.append(Problem("label of two images", where, what))
            continue
        mentioned.update(readings)
        is_beside = readings[-1].startswith("./")
        folders = (list_file.parent, *roots) if is_beside else (*roots, list_file.parent)
        found_paths = [str(find_path(each, folders)) for each in readings]
        if image := next(filter(os.path.isfile, found_paths), None):
            images.append(image)
        else:
            looked = found_paths[-1] if voc_folder is None else voc_folder / f"{readings[-1]}.jpg"
            sources.problems.append(Problem("image missing", where, f"there is no image {looked}"))
    sources.lists.add(str(list_file))
    voc_folders = [] if voc_folder is None else [voc_folder]
    looked_in = itertools.product((list_file.parent, *roots, *voc_folders), _folders_named(mentioned))
    sources.watched.update(map(str, voc_folders), (os.path.normpath(folder / each) for folder, each in looked_in))
    return images


def _folders_named(entries: Iterable[str]) -> set[str]:
    return {os.path.dirname(each) for entry in entries for each in spellings(entry)}


def _voc_images(readings: list[str], voc_folder: Path, by_stem: Callable[[str], dict[str, list[str]]]) -> list[str]:
    """The image below `voc_folder` that a line means, mostly without a suffix; several that differ in it; none."""
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
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
            found[stem].append(name)
            found[name].append(name)
    return found
