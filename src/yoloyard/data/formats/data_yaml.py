"""The data.yaml of a data set: where its images are and what its classes are called."""

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.pixel_spec import EIGHT_BITS, PixelSpec
from yoloyard.data.formats.labels import decoded
from yoloyard.data.formats.layout import find_path, search_folder
from yoloyard.data.formats.pixel_keys import PIXEL_KEYS, read_pixel_keys
from yoloyard.data.formats.table import FORMATS, SplitFormat, image_formats

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
ALSO_VAL = ("validation", "valid")  # where there is no val
NUMBERS = ("nc", "channels", "bits")  # keys whose values are numbers
KEYS = ("path", *SPLITS, "names", "nc", *PIXEL_KEYS)

# Users' files carry these for other programs. They are passed over and never acted upon; `download` may hold code.
HARMLESS_KEYS = (
    "author", "colormap", "contributor", "created", "date", "description", "download", "flip_idx", "info",
    "is_coco", "kpt_names", "kpt_shape", "licence", "license", "minival", "name", "roboflow", "scope", "stuff_names",
    "tags", "task", "url", "version", "yaml_file",
)  # fmt: skip
LIKE_OURS = 0.75  # similarity from which an unknown key is taken for a misspelt one
_KEYPOINTS = re.compile(r"kpt|key_?-?point|skeleton|flip_?ind|flip_?idx", re.IGNORECASE)  # what keys speak of
HINT_FILES = 5  # label files, for the classes that they mention


@dataclass(frozen=True)
class Entry:
    """One place where a split's images or labels are, existing or not."""

    path: Path  # a folder, a list file, an image or a COCO JSON; with `labels` the folder of the images
    labels: Path | None = None  # a folder or a COCO JSON, where the data.yaml says it

    @property
    def place(self) -> Path:
        """Where the labels are, or are found from."""
        return self.labels or self.path

    @property
    def format(self) -> SplitFormat | None:
        """That of `place`, if it is one file with the labels of all images, such as a COCO JSON."""
        forms = (form for form in FORMATS.values() if isinstance(form, SplitFormat))
        return next((form for form in forms if form.suffix == self.place.suffix.lower()), None)


@dataclass(frozen=True)
class DataSpec:
    """What a data.yaml says, its paths made absolute."""

    path: Path  # the yaml itself
    names: tuple[str, ...]
    splits: dict[str, tuple[Entry, ...]]
    root: Path  # the folder that relative paths start from
    keypoint_values: int = 0  # how many numbers of keypoints follow the box in a row of text labels
    pixels: PixelSpec = EIGHT_BITS  # what its images are made of; the index has their bits
    bits: int | None = None  # of the pixels; None: the images decide

    def with_pixels(self, pixels: PixelSpec, whose: str) -> Self:
        """This with images as those of a training split or a weights file; the names of files stay.

        `whose` they are is for messages. Raises UserError for other channels; a line tells of another window.
        """
        own = self.pixels
        if own.channels != pixels.channels:
            what = f"channels is {own.channels}, but {whose} was made for {pixels.channels}"
            raise UserError(f"{self.path}: {what}; correct the data.yaml, or train again for its images")
        if own.has_colours != pixels.has_colours:
            kind = {True: "red, green and blue", False: "three lights"}
            what = f"its images are {kind[own.has_colours]}, but those of {whose} {kind[pixels.has_colours]}"
            raise UserError(f"{self.path}: {what}; correct `files`, or train again for these images")
        if own.window is not None and (own.window, own.percent) != (pixels.window, pixels.percent):
            log.info(f"{self.path}: its window is not that of {whose}, which is used")
        return replace(self, pixels=replace(pixels, files=own.files), bits=pixels.bits)


def read_data_yaml(path: Path | str) -> DataSpec:
    """Read a data.yaml; relative paths start from the file's own folder. Whether images are there is not looked at.

    Without `names`, the classes are the categories of the first split's COCO JSON; without `val`, `validation` or
    `valid` is it. Keys that are unknown and not like a missing one of ours are passed over with a line, and so are
    keypoints. Raises UsageError naming the file, and the line or key that is wrong.
    """
    path = Path(os.path.abspath(path))
    tree, texts = _parse(path)
    if own := next((key for key in ALSO_VAL if tree.get(key) and not tree.get("val")), None):
        tree["val"], texts["val"] = tree.pop(own), texts[own]
    unknown = [str(key) for key in tree if key not in KEYS and key not in HARMLESS_KEYS]
    for key in unknown:
        turned = [own for own in KEYS if sorted(own) == sorted(key.lower())]  # such as vla
        nearest = next(iter(turned or difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=LIKE_OURS)), None)
        if nearest and nearest not in tree and (nearest in NUMBERS or not isinstance(tree.get(key), int | float)):
            valid = f"the nearest valid one is {nearest!r} (valid are {', '.join(KEYS)})"
            raise UsageError(f"{path}: unknown key {key!r}; {valid}")
    keypoint_values = _keypoint_values(path, tree)
    if unknown:
        log.info(f"{path}: keys that mean nothing here are passed over: {', '.join(unknown)}")
    pixels, bits = read_pixel_keys(path, tree, texts)
    root, entry = path.parent, tree.get("path") and texts["path"]
    if entry not in (None, ""):
        if not isinstance(entry, str):
            raise UsageError(f"{path}: path must be a folder, not {entry!r}")
        named = find_path(os.path.expanduser(entry), (path.parent,))
        # A data.yaml is often inside the folder that it names; then its own folder is meant.
        root = named if os.path.isdir(named) or os.path.isabs(entry) else path.parent
    folders = (root, path.parent)
    splits = {split: _entries(path, split, texts[split], folders) for split in SPLITS if tree.get(split)}
    if not splits:
        raise UsageError(f"{path}: none of {', '.join(SPLITS)} says where images are")
    if keypoint_values:
        log.info(f"{path}: kpt_shape says that rows have keypoints: they are left out, the boxes are used")
    names = _names(path, tree.get("names") and texts["names"], tree.get("nc"), next(iter(splits.values())))
    return DataSpec(path, names, splits, root, keypoint_values, pixels, bits)


def _parse(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What the file says by the rules of YAML, and with all scalars as texts: the names 0123 and no, not 83, false."""
    import yaml

    def resolvers(keep: Callable[[str], bool]) -> dict[str, list[Any]]:
        rules = yaml.SafeLoader.yaml_implicit_resolvers.items()
        return {first: [rule for rule in own if keep(rule[0].rpartition(":")[2])] for first, own in rules}

    class Loader(yaml.SafeLoader):  # without rules for dates and for `=`: some names would be errors
        yaml_implicit_resolvers = resolvers(lambda tag: tag not in ("timestamp", "value"))

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node: yaml.MappingNode = super().compose_mapping_node(anchor)
            known = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if key.value in known:  # YAML forbids it, its reader does not
                    what = f"the key {key.value} is there twice"
                    raise yaml.MarkedYAMLError(problem=what, problem_mark=key.start_mark)
                known.add(key.value)
            return node

    class TextLoader(Loader):  # all scalars are texts, but for the key `<<`
        yaml_implicit_resolvers = resolvers(lambda tag: tag == "merge")

    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; --data wants the data.yaml that describes the data set")
    try:
        text = decoded(path.read_bytes())
        tree, texts = yaml.load(text, Loader), yaml.load(text, TextLoader)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}; --data wants the data.yaml that describes the data set") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a UTF-8 text file (byte {error.start}); --data wants a data.yaml") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{path}{line}: not valid YAML ({problem})") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected lines such as 'train: images/train' and 'names: [dent, scratch]'")
    return tree, texts


def _names(path: Path, names: Any, count: Any, entries: tuple[Entry, ...]) -> tuple[str, ...]:
    if not names:
        names = _names_of_labels(path, entries)
    if isinstance(names, dict):
        if not all(str(key).isdecimal() for key in names):
            raise UsageError(f"{path}: the keys of names must be the class numbers 0, 1, 2 ...")
        numbered = {int(key): name for key, name in names.items()}
        missing = [number for number in range(len(names)) if number not in numbered]
        if missing:
            raise UsageError(f"{path}: names has {len(names)} entries but none for class {missing[0]}")
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise UsageError(f"{path}: names must be a list or a map from class number to name, not {names!r}")
    for number, name in enumerate(names):
        if name is None or name == "":
            raise UsageError(f"{path}: class {number} of names has no name")
        if isinstance(name, list | dict):
            raise UsageError(f"{path}: the class name {name!r} is not a text; put it in quotes")
    if count not in (None, len(names)) and str(count).strip() != str(len(names)):
        raise UsageError(f"{path}: nc is {count!r} but names has {len(names)} entries; correct one of them")
    return tuple(str(name) for name in names)


def _keypoint_values(path: Path, tree: dict[Any, Any]) -> int:
    """How many numbers of keypoints a row has, by `kpt_shape`: [keypoints, 2 (x, y) or 3 (x, y, visibility)]."""
    shape = tree.get("kpt_shape")
    if not shape:
        found = [str(key) for key, value in tree.items() if value and _KEYPOINTS.search(str(key))]
        if re.search("pose|key_?-?point", str(tree.get("task")).lower()):
            found.append("task")
        if found:
            what = "it describes keypoints (pose) without kpt_shape: say how many, kpt_shape: [17, 3]"
            raise UsageError(f"{path}: {what}, or take their keys out ({', '.join(found)})")
        return 0
    if not isinstance(shape, list) or list(map(type, shape)) != [int, int] or shape[0] < 0 or shape[1] not in (2, 3):
        raise UsageError(f"{path}: kpt_shape must be [keypoints, 2 or 3], not {shape!r}")
    return int(shape[0] * shape[1])


def _names_of_labels(path: Path, entries: tuple[Entry, ...]) -> list[str]:
    """The classes that the files of all entries list, such as the categories of COCO JSONs."""
    names: dict[str, None] = {}
    for entry in entries:
        if entry.format is None:
            forms = {form.suffix: form.mentioned_classes for form in image_formats() if form.mentioned_classes}
            files: list[Path] = []
            with contextlib.suppress(UserError):  # of a folder that can't be read; this is a hint only
                files = sorted(map(Path, search_folder(entry.place.parent, frozenset(forms)).files))[:HINT_FILES]
            mentioned = dict.fromkeys(name for file in files for name in forms[file.suffix.lower()](file.read_bytes()))
            hint = f"; the first XML files mention {', '.join(mentioned)}" if mentioned else ""
            what = "no names; list the classes in the order of their numbers, names: [dent, scratch]"
            raise UsageError(f"{path}: {what}{hint}")
        if not entry.place.exists():
            raise UsageError(f"{path}: no names, and {entry.place}, whose categories they would be, does not exist")
        names |= dict.fromkeys(entry.format.class_names(entry.place, entry.format.read(entry.place)))
    return list(names)


def _entries(path: Path, split: str, value: Any, folders: tuple[Path, ...]) -> tuple[Entry, ...]:
    entries = []
    for entry in value if isinstance(value, list) else [value]:
        own = entry if isinstance(entry, dict) else {"images": entry}
        is_text = all(isinstance(text, str) and text for text in own.values())
        if "images" not in own or not own.keys() <= {"images", "labels"} or not is_text:
            raise UsageError(
                f"{path}: {split} must be a folder, a list file, a COCO .json, images: FOLDER with labels: FOLDER or "
                f"JSON, or a list of these, not {entry!r}"
            )
        paths = {key: find_path(os.path.expanduser(text), folders) for key, text in own.items()}
        entries.append(Entry(paths["images"], paths.get("labels")))
    return tuple(entries)
