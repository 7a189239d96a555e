"""A data set in another format: images linked, labels of all splits written, a data.yaml beside them."""

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import fill_folder, free_name, write_whole_folder
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.formats.labels import LabelledImage
from yoloyard.data.formats.layout import is_side_folder
from yoloyard.data.formats.pixel_keys import pixel_keys
from yoloyard.data.formats.table import FORMATS, IMAGE_FOLDERS, ImageFormat, SplitFormat
from yoloyard.data.index.index import Index, read_split, require_images
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES
from yoloyard.data.pixels.image_header import SIGNATURE_BYTES, usual_suffix

log = logging.getLogger(__name__)


def convert(spec: DataSpec, out: Path, to: str) -> Path:
    """Write all splits of `spec` to the folder `out` in the format `to` (of `FORMATS`); gives the new data.yaml.

    Images are hard links, or copies where links can't be made. The folder is written whole or not at all; an empty one
    that is there already is filled, the data.yaml last. Raises UsageError if `to` is unknown, or if `out` holds
    something or is in a folder of the data set, UserError if the data can't be read or written.
    """
    form = FORMATS.get(to)
    if form is None:
        raise UsageError(f"--to {to}: the formats are {', '.join(FORMATS)}")
    out = Path(os.path.realpath(out))  # a link to an empty folder stays one
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds something already: name an empty or a new folder")
    searched = [entry for entries in spec.splits.values() for entry in entries if entry.format is None]
    for folder in {path for entry in searched for path in (entry.path, entry.place)}:
        if folder.is_dir() and out.is_relative_to(os.path.realpath(folder)):
            raise UsageError(f"{out} is in {folder} and would become part of the data set: name a folder outside")
    if spec.pixels.files:
        raise UsageError(f"{spec.path}: files says that images consist of several files, which can't be converted yet")
    indexes = {split: read_split(spec, split) for split in spec.splits}
    for split, index in indexes.items():
        require_images(index, spec, split)

    def write(folder: Path) -> None:
        data: dict[str, Any] = {split: _write_split(folder, split, index, form) for split, index in indexes.items()}
        data |= pixel_keys(spec.pixels, spec.bits) | {"names": list(spec.names)}
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")

    (fill_folder if out.exists() else write_whole_folder)(out, write)
    for split, index in indexes.items():
        for problem in index.problems:
            log.info(f"{split}: {problem}")
        if left_out := 0 if form.keeps_ignore else int(index.ignore.sum()):
            what = f"{left_out} boxes are to be ignored (crowd, difficult); {to.upper()} can't say that: left out"
            log.info(f"{split}: {what}")
        log.info(f"{split}: {len(index)} images, {len(index.boxes) - left_out} boxes")
    return out / "data.yaml"


def free_names(file_names: list[str]) -> list[str]:
    """Relative names that differ even without their suffix, since labels have another one.

    Folders that labels are found by go, those that searches pass over get another name; odd signs become `_`.
    """
    taken: set[str] = set()
    result = []
    for name in file_names:
        parts = [part.lstrip(".") for part in name.replace("\\", "/").split("/") if part not in IMAGE_FOLDERS]
        parts = [f"own_{part}" if is_side_folder(part) else part for part in parts if part]
        stem, suffix = os.path.splitext("/".join(parts))
        stem, suffix = ("".join(sign if sign.isprintable() else "_" for sign in text) for text in (stem, suffix))
        free = free_name(stem, max(suffix, ".txt", key=lambda text: len(text.encode())), taken)  # .xml is as long
        result.append(free + suffix)
    return result


def _write_split(folder: Path, split: str, index: Index, form: ImageFormat | SplitFormat) -> str | dict[str, str]:
    """Write images and labels of a split; gives its entry of the data.yaml."""
    image_folder, label_folder = form.written_to
    names = free_names([_with_suffix(*pair) for pair in zip(index.file_names, index.paths, strict=True)])
    entry = f"{image_folder}/{split}"
    for path, name in zip(index.paths, names, strict=True):
        _link(path, folder / entry / name)
    images = (
        LabelledImage(name, (height, width), *index.annotations(position), int(index.source_ids[position]))
        for position, (name, (height, width)) in enumerate(zip(names, index.sizes.tolist(), strict=True))
    )
    if isinstance(form, SplitFormat):
        labels = f"{label_folder}/instances_{split}{form.suffix}"
        classes = list(zip(index.category_ids.tolist(), index.names, strict=True))
        _write(folder / labels, form.format(images, classes))
        return {"images": entry, "labels": labels}
    for image in images:
        path = (folder / label_folder / split / image.name).with_suffix(form.suffix)
        _write(path, form.format(image, index.names))
    if form.list_folder:
        lines = "".join(f"{split}/{os.path.splitext(name)[0]}\n" for name in names)
        _write(folder / form.list_folder / f"{split}.txt", lines)
    return entry


def _with_suffix(name: str, path: Path) -> str:
    """The name of an image, with a suffix that searches know; in lists and COCO JSON images are called anything."""
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return name
    with path.open("rb") as file:
        return name + usual_suffix(file.read(SIGNATURE_BYTES))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a relative link would mean another file elsewhere
    with contextlib.suppress(OSError):  # another disk, or a file that others own
        os.link(source, target)
        return
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror or error}") from error
