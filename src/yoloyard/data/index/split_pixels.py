"""What the images of a split are made of: whether their files have the channels that they must have, and their bits."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.index.image_facts import ImageFacts, examine
from yoloyard.data.pixels.decode import COLOUR_CHANNELS
from yoloyard.data.pixels.lights import files_of


def examine_images(
    paths: Sequence[Path], spec: DataSpec, split: str
) -> tuple[dict[Path, ImageFacts], PixelSpec, list[Problem]]:
    """The facts of each image, by its first file, the split's pixels, and warnings.

    An image has a problem where one of its files is missing, can't be used or differs from the first, and where a file
    has other channels than the data.yaml says. Where it says no bits, they are 16 if all images have 16, or some and
    there is a window.
    """
    sets = {path: files_of(path, spec.pixels.files) for path in paths}
    files = list(dict.fromkeys(file for own in sets.values() for file in own))
    of_file = dict(zip(files, examine(files, split), strict=True))
    facts = {path: _as_one(own, of_file, spec.pixels) for path, own in sets.items()}
    usable = {path: each for path, each in facts.items() if not each.problem}
    grey = "it has colours, and its image has one channel for it: they are made grey"
    warnings = [
        Problem("colours made grey", str(file), grey)
        for path in usable
        for file in sets[path]
        if (spec.pixels.channels == 1 or spec.pixels.files) and of_file[file].channels > 1
    ]
    deep = sum(each.bits == 16 for each in usable.values())
    bits = spec.bits or (16 if deep and (deep == len(usable) or spec.pixels.window) else 8)
    if 0 < deep < len(usable):
        what = f"{deep} of the {len(usable)} images of {split!r} have 16 bits, the others 8; all become {bits}"
        warnings.append(Problem("bits differ", str(spec.path), f"{what}, `bits` here says which"))
    return facts, replace(spec.pixels, bits=bits), warnings


def _as_one(files: Sequence[Path], facts: Mapping[Path, ImageFacts], pixels: PixelSpec) -> ImageFacts:
    """The facts of an image of these files: those of its first one, with what is wrong with any."""
    first, wanted = facts[files[0]], 1 if pixels.files else pixels.channels
    if pixels.files and len(files) == 1:
        what = f"its name has none of {', '.join(pixels.files)}, so that it belongs to no image"
        return _skipped(first, "image incomplete", files[0], what)
    for file in files:
        own = facts[file]
        if len(files) > 1 and not os.path.exists(file):
            return _skipped(first, "image incomplete", files[0], f"there is no {file}, another file of this image")
        if own.problem:
            return replace(first, problem=own.problem)
        if (own.height, own.width, own.bits) != (first.height, first.width, first.bits):
            mine, other = (f"{each.width}x{each.height} pixels of {each.bits} bits" for each in (own, first))
            what = f"it has {mine}, but {files[0].name} of the same image {other}"
            return _skipped(first, "image incomplete", file, what)
        if own.channels not in (COLOUR_CHANNELS if wanted in (1, 3) else (wanted,)):
            what = f"it has {own.channels} channels and must have {wanted} (`channels` in the data.yaml"
            what += "; pages of a TIFF are no channels)" if file.suffix.lower() in (".tif", ".tiff") else ")"
            return _skipped(first, "channels differ", file, what)
    return first


def _skipped(facts: ImageFacts, kind: str, where: Path, what: str) -> ImageFacts:
    return replace(facts, problem=Problem(kind, str(where), what, "image skipped"))
