"""The data of a job: what of it goes to a host, where the training finds it there, and by what it is told again.

A job's folder on a host has the checkout in `source/`, which is the training's working folder, and the data in `data/`.
A data.yaml may lie in the data's folder or in the repository, and name its folders by paths of this machine. So a host
gets a data.yaml of its own, `data.yaml` in the job's folder, whose paths start from `data/`: the text of
`DataSet.yaml`, to which the training's setting `data` leads as `../data.yaml`. Where the data lie in an object store
and this machine has no data.yaml, `train.data` names the one among them, and the setting is `../data/NAME`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yoloyard.common.cores import map_in_threads, usable_cores
from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.log import bytes_text
from yoloyard.data.formats.data_yaml import DataSpec, read_data_yaml
from yoloyard.data.formats.pixel_keys import pixel_keys
from yoloyard.data.formats.sources import find_sources
from yoloyard.data.pixels.lights import files_of
from yoloyard.data.store import Store, stamp
from yoloyard.storage.address import is_address, open_store, reasons_said

log = logging.getLogger(__name__)

YAML = "data.yaml"  # in a job's folder on a host
DIGESTS = Store("fingerprints", ".json", version=1, kept=100)  # of files, by the data sets that they are in
SAID_BYTES = 2 * 10**9  # that take a while to read


@dataclass(frozen=True)
class DataSet:
    """What a job trains on."""

    setting: str  # `data` of the training, relative to the checkout
    yaml: str | None  # the content of FOLDER/data.yaml; None where the setting leads into the data themselves
    fingerprint: str  # sha256:..., the same on each machine
    folder: Path | None  # here, from which `files` start; None where they come from an object store
    files: tuple[str, ...] = ()  # what is to be copied: images, labels, lists; links are to be followed
    bytes: int = 0  # of these files
    source: str | None = None  # the object-store prefix


def find_data(path: Path, data: str | None, base: Path, endpoint: str | None = None) -> DataSet:
    """The data set of the data.yaml at `path`, whose files lie in `data`: a folder, an object-store prefix, or None.

    None: where the data.yaml says. A data.yaml in an object store is called by its path from `base`. Of a local set,
    those files are part that the data.yaml leads to: images of its splits, their labels, lists. Raises UsageError or
    UserError.
    """
    if is_address(data):
        return _stored(path, base, str(data), endpoint)
    spec = read_data_yaml(path)
    files, splits = _files_of(spec)
    folder = Path(data).absolute() if data else spec.root
    if data and not folder.is_dir():
        raise UsageError(f"data: there is no folder {folder}")
    outside = [file for file in files if not file.is_relative_to(folder)]
    if outside and data:
        raise UsageError(f"{spec.path} leads to {outside[0]}, which is not in data: {folder}; correct one of the two")
    if outside:
        folder = Path(os.path.commonpath([folder, *files]))
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    text = _yaml(spec, folder, splits)
    digests = _digests(folder, names)
    size = sum(os.stat(folder / name).st_size for name in names)
    rows = [*zip(names, digests, strict=True), (YAML, text)]
    return DataSet(f"../{YAML}", text, _fingerprint(rows), folder, tuple(names), size)


def _files_of(spec: DataSpec) -> tuple[list[Path], list[str]]:
    """All files that the splits lead to, and the splits: train, val, and test where it is here."""
    files, splits = set[Path](), list[str]()
    for split, entries in spec.splits.items():
        if split == "test" and not all(entry.path.exists() for entry in entries):
            log.info(f"{spec.path}: what it names for test is not here and stays out")
            continue
        splits.append(split)
        sources = find_sources(spec, split)
        images = [image.path for image in sources.images]
        files |= {Path(file) for file in sources.lists}
        files |= {image.labels for image in sources.images if image.labels.exists()}
        for each in sources.split_files:
            images += [each.image(name) for name in each.file_names]
        files |= {file for image in images for file in files_of(image, spec.pixels.files) if file.is_file()}
    return sorted(files), splits


def _yaml(spec: DataSpec, folder: Path, splits: Sequence[str]) -> str:
    """A data.yaml for a host, beside whose folder data/ it lies."""

    def there(path: Path) -> str:
        if not path.is_relative_to(folder):
            raise UsageError(f"{spec.path} leads to {path}, which is not in {folder}, where the data are")
        return path.relative_to(folder).as_posix()

    tree: dict[str, Any] = {"path": "data"}
    for split in splits:
        entries = spec.splits[split]
        tree[split] = [
            {"images": there(each.path), "labels": there(each.labels)} if each.labels else there(each.path)
            for each in entries
        ]
    if spec.keypoint_values:
        each = 3 if spec.keypoint_values % 3 == 0 else 2
        tree["kpt_shape"] = [spec.keypoint_values // each, each]
    tree |= pixel_keys(spec.pixels, spec.bits)
    return yaml.safe_dump(tree | {"names": list(spec.names)}, sort_keys=False, allow_unicode=True, width=120)


def _digests(folder: Path, names: Sequence[str]) -> list[str]:
    """The SHA-256 of each file. Those of files that look as they did when they were read last are kept in the cache."""
    note = DIGESTS.path([str(folder)])
    known: dict[str, list[Any]] = DIGESTS.find(note, lambda path: dict(json.loads(path.read_bytes()))) or {}
    stamps = {name: stamp(folder / name) for name in names}
    changed = [name for name in names if known.get(name, [None])[:-1] != stamps[name]]
    size = sum(stamps[name][0] for name in changed if stamps[name])
    if size > SAID_BYTES:
        log.info(f"reading {bytes_text(size)} of data for their fingerprint, this once")
    digests = map_in_threads(lambda name: _digest(folder / name), changed, min(8, usable_cores()))
    new = {name: [*stamps[name], digest] for name, digest in zip(changed, digests, strict=True)}
    rows = {name: new.get(name) or known[name] for name in names}
    if new:
        DIGESTS.write(note, lambda path: path.write_text(json.dumps(rows), encoding="utf-8"))
    return [str(rows[name][-1]) for name in names]


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _stored(path: Path, base: Path, prefix: str, endpoint: str | None) -> DataSet:
    """The data set in an object store: its fingerprint is made of names, sizes and ETags, and nothing is fetched."""
    store = open_store(prefix, endpoint)
    import obstore

    with reasons_said(prefix):
        objects = sorted((each for chunk in obstore.list(store) for each in chunk), key=lambda each: each["path"])
    if not objects:
        raise UsageError(f"data: {prefix} holds nothing: see whether the prefix is right")
    # The ETags of a folder (file://) hold numbers that only one machine has.
    tags = [str(each["last_modified"] if prefix.startswith("file:") else each["e_tag"]) for each in objects]
    rows = [(each["path"], f"{each['size']} {tag}") for each, tag in zip(objects, tags, strict=True)]
    size = sum(each["size"] for each in objects)
    if path.exists():
        spec = read_data_yaml(path)
        text = _yaml(spec, spec.root, list(spec.splits))
        return DataSet(f"../{YAML}", text, _fingerprint([*rows, (YAML, text)]), None, (), size, prefix)
    name = os.path.relpath(path, base)
    if name not in {each["path"] for each in objects}:
        raise UsageError(f"train.data: there is no file {path} here, and no {name} in {prefix}")
    return DataSet(f"../data/{name}", None, _fingerprint(rows), None, (), size, prefix)


def _fingerprint(rows: Sequence[tuple[str, str]]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(rows).encode()).hexdigest()
