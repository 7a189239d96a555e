"""The data.yaml of a data set: where its pictures are and what its classes are called."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yoloyard.data.coco_json import category_names, read_coco_file
from yoloyard.data.layout import images_below, label_path
from yoloyard.data.voc_xml import mentioned_classes
from yoloyard.errors import UsageError

SPLITS = ("train", "val", "test")
KEYS = ("path", *SPLITS, "names", "nc")

# Users' files carry these for other programs. They are read past and never acted upon; `download` may hold code.
HARMLESS_KEYS = (
    "author", "channels", "colormap", "contributor", "created", "date", "description", "download", "flip_idx", "info",
    "kpt_names", "kpt_shape", "licence", "license", "minival", "name", "roboflow", "scope", "stuff_names", "tags",
    "task", "url", "version", "yaml_file",
)  # fmt: skip


LOOKED_AT = 5  # label files, for the classes that they mention


@dataclass(frozen=True)
class Entry:
    """One place where a split's pictures or labels are, existing or not."""

    path: Path  # a folder, a list file, a picture or a COCO JSON; with `labels` the folder of the pictures
    labels: Path | None = None  # a folder or a COCO JSON, where the data.yaml says it

    @property
    def coco(self) -> Path | None:
        """The COCO JSON, if it is one."""
        path = self.labels or self.path
        return path if path.suffix.lower() == ".json" else None


@dataclass(frozen=True)
class DataSpec:
    """What a data.yaml says, its paths made absolute."""

    path: Path  # the yaml itself
    names: tuple[str, ...]
    splits: dict[str, tuple[Entry, ...]]
    root: Path  # the folder that relative paths start from


def read_data_yaml(path: Path | str) -> DataSpec:
    """Read a data.yaml; relative paths start from the file's own folder, wherever the program was started.

    Whether the pictures are there is not looked at before `load_index` needs them. Without `names`, the classes are
    the categories of the first split's COCO JSON.
    Raises UsageError naming the file, and the line or key that is wrong.
    """
    path = Path(os.path.abspath(path))
    tree = _parse(path)
    for key in tree:
        if key not in KEYS and key not in HARMLESS_KEYS:
            nearest = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.0)[0]
            raise UsageError(
                f"{path}: unknown key {key!r}; the nearest valid one is {nearest!r} (valid are {', '.join(KEYS)})"
            )
    if tree.get("channels", 3) != 3:
        raise UsageError(f"{path}: channels is {tree['channels']!r}, only pictures of 3 channels can be trained on")
    root = _root(path, tree.get("path"))
    folders = (root, path.parent)
    splits = {split: _entries(path, split, tree[split], folders) for split in SPLITS if tree.get(split)}
    if not splits:
        raise UsageError(f"{path}: none of {', '.join(SPLITS)} says where images are")
    names = _names(path, tree, next(iter(splits.values())))
    return DataSpec(path, names, splits, root)


def find_path(entry: str, folders: tuple[Path, ...]) -> Path:
    """The first of `folders` in which `entry` exists; in the first folder if it exists in none.

    Some exports write `../train/images` where `train/images` is meant; it is tried second.
    """
    entries = [entry, entry[3:]] if entry.startswith("../") else [entry]
    candidates = [Path(os.path.normpath(folder / each)) for folder in folders for each in entries]
    return next((candidate for candidate in candidates if os.path.exists(candidate)), candidates[0])


def _parse(path: Path) -> dict[Any, Any]:
    import yaml

    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; --data wants the data.yaml that describes the data set")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
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
    return tree


def _names(path: Path, tree: dict[Any, Any], entries: tuple[Entry, ...]) -> tuple[str, ...]:
    names = tree.get("names")
    if not names:
        names = _names_of_labels(path, entries)
    if isinstance(names, dict):
        if any(isinstance(key, bool) or not str(key).isdigit() for key in names):
            raise UsageError(f"{path}: the keys of names must be the class numbers 0, 1, 2 ...")
        numbered = {int(key): name for key, name in names.items()}
        missing = [number for number in range(len(names)) if number not in numbered]
        if missing:
            raise UsageError(f"{path}: names has {len(names)} entries but none for class {missing[0]}")
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise UsageError(f"{path}: names must be a list or a map from class number to name, not {names!r}")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise UsageError(f"{path}: the class name {name!r} is not a text; put it in quotes")
    count = tree.get("nc")
    if count is not None and count != len(names):
        raise UsageError(f"{path}: nc is {count!r} but names has {len(names)} entries; correct one of them")
    return tuple(str(name) for name in names)


def _root(path: Path, entry: Any) -> Path:
    if entry is None or entry == "":
        return path.parent
    if not isinstance(entry, str):
        raise UsageError(f"{path}: path must be a folder, not {entry!r}")
    root = find_path(os.path.expanduser(entry), (path.parent,))
    # A yaml that lies inside the folder that it names is common; then its own folder is meant.
    return root if os.path.isdir(root) or os.path.isabs(entry) else path.parent


def _names_of_labels(path: Path, entries: tuple[Entry, ...]) -> list[str]:
    files = [entry.coco for entry in entries if entry.coco is not None]
    if len(files) == len(entries):
        for file in files:
            if not file.exists():
                raise UsageError(f"{path}: no names, and {file}, whose categories they would be, does not exist")
        return list(dict.fromkeys(name for file in files for name in category_names(file, read_coco_file(file))))
    mentioned = _mentioned(entries)
    hint = f"; the first XML files mention {', '.join(mentioned)}" if mentioned else ""
    raise UsageError(f"{path}: no names; list the classes in the order of their numbers, names: [dent, scratch]{hint}")


def _mentioned(entries: tuple[Entry, ...]) -> list[str]:
    """The classes that the first few XML files mention, for a message."""
    found: dict[str, None] = {}
    for entry in entries:
        if entry.labels is not None and entry.labels.is_dir():
            files = sorted(entry.labels.glob("*.xml"))
        elif entry.path.is_dir():
            files = [label_path(Path(image)) for image in sorted(images_below(entry.path))[:LOOKED_AT]]
        else:
            files = sorted((entry.path.parents[2] / "Annotations").glob("*.xml")) if len(entry.path.parts) > 3 else []
        for file in files[:LOOKED_AT]:
            if file.suffix == ".xml":
                found |= dict.fromkeys(mentioned_classes(file.read_bytes()))
    return list(found)


def _entries(path: Path, split: str, value: Any, folders: tuple[Path, ...]) -> tuple[Entry, ...]:
    entries = []
    for entry in value if isinstance(value, list) else [value]:
        own = entry if isinstance(entry, dict) else {"images": entry}
        if "images" not in own or not own.keys() <= {"images", "labels"} or not all(map(_is_text, own.values())):
            raise UsageError(
                f"{path}: {split} must be a folder, a list file, a COCO .json, images: FOLDER with labels: FOLDER or "
                f"JSON, or a list of these, not {entry!r}"
            )
        paths = {key: find_path(os.path.expanduser(text), folders) for key, text in own.items()}
        entries.append(Entry(paths["images"], paths.get("labels")))
    return tuple(entries)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
