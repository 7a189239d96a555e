"""The images of a split and their labels, read from its files, with all that is wrong with them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.data.audit.problems import Problem
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.formats.labels import LabelledImage, Labels
from yoloyard.data.formats.sources import SourceImage, Sources
from yoloyard.data.formats.table import parse_label_files
from yoloyard.data.formats.yolo_txt import pose_problem
from yoloyard.data.index.image_facts import ImageFacts
from yoloyard.data.index.split_pixels import examine_images


@dataclass(frozen=True)
class ReadSplit:
    """What the files of a split say."""

    images: dict[Path, LabelledImage]  # those that can be used; `image_id` is the source's
    category_ids: list[int]  # of the classes
    problems: list[Problem]
    skipped: int  # images that the split names and that can't be used
    pixels: PixelSpec  # what its images are made of


def read_sources(spec: DataSpec, split: str, sources: Sources, files: list[bytes | Problem | None]) -> ReadSplit:
    """Read a split; `files` are the contents of the label files of `sources.images`, or why there are none.

    Images of COCO files come first, by their ids, as other evaluation tools go through them.
    """
    sets = [file.format.parse(file.path, file.content, spec.names) for file in sources.split_files]
    problems = [*sources.problems, *(problem for said in sets for problem in said.problems)]
    names: dict[Path, str] = {}
    ids: list[int | str] = []
    rows_of: list[dict[int, Path]] = []  # the images of each of `sets` that are there
    for file, said in zip(sources.split_files, sets, strict=True):
        rows_of.append({})
        for row, name in enumerate(said.file_names):
            path, place = file.image(name), said.places[row]
            if path in names:
                what = f"another file has labels for {path} too; the labels of an image must be in one"
                problems.append(Problem("label malformed", place, what, "these left out"))
            elif not os.path.isfile(path):
                problems.append(Problem("image missing", place, f"there is no image {path}", "image skipped"))
            else:
                names[path] = name
                ids.append(said.image_ids[row])
                rows_of[-1][row] = path
    own = [(source, file) for source, file in zip(sources.images, files, strict=True) if source.path not in names]
    names |= {source.path: os.path.relpath(source.path, sources.folder) for source, _ in own}

    facts, pixels, warnings = examine_images(list(names), spec, split)
    problems += warnings
    labels: dict[Path, Labels] = {}
    for said, rows in zip(sets, rows_of, strict=True):
        sizes = np.zeros((len(said.image_ids), 2), np.int64)
        for row, path in rows.items():
            sizes[row] = facts[path].height, facts[path].width
        all_labels = said.labels(sizes)
        labels |= {path: all_labels[row] for row, path in rows.items()}
    labels |= _labels_of_files(own, facts, spec)
    if not spec.keypoint_values:
        problems += pose_problem((each.labels, file) for each, file in own if isinstance(file, bytes))

    # For other tools, ids are COCO's if the whole split has them, as numbers, and no two files use one for two things.
    category_ids, numbers = list(range(len(spec.names))), []
    if sets and not own and all(said.category_ids == sets[0].category_ids for said in sets):
        category_ids, numbers = sets[0].category_ids, [number for number in ids if isinstance(number, int)]
    is_coco = bool(numbers) and len(set(numbers)) == len(ids)
    images: dict[Path, LabelledImage] = {}
    for position, (path, image) in enumerate(facts.items()):
        problems += [image.problem] if image.problem else labels[path].problems
        if not image.problem and (mine := labels[path]).usable:
            source_id, size = numbers[position] if is_coco else len(images), (image.height, image.width)
            images[path] = LabelledImage(names[path], size, mine.boxes, mine.labels, mine.ignore, source_id)
    missing = sum(problem.kind == "image missing" for problem in problems)
    skipped = len(names) - len(images) + missing + sum(said.images_left_out for said in sets)
    return ReadSplit(images, category_ids, problems, skipped, pixels)


def _labels_of_files(
    images: list[tuple[SourceImage, bytes | Problem | None]], facts: dict[Path, ImageFacts], spec: DataSpec
) -> dict[Path, Labels]:
    """The labels of images that have a file of their own, given with its content, the reason why not, or None."""
    labels = {image.path: Labels() for image, _ in images}
    files: dict[Path, tuple[Path, bytes]] = {}
    for image, file in images:
        if facts[image.path].problem:
            continue  # it says enough
        if file is None:
            what = f"it has no label file, such as {image.labels}; it counts as an image without objects"
            labels[image.path].problems.append(Problem("image without label", str(image.path), what))
        elif isinstance(file, Problem):
            labels[image.path] = Labels(problems=[file], usable=False)
        else:
            files[image.path] = image.labels, file
    sizes = [(facts[path].height, facts[path].width) for path in files]
    parsed = parse_label_files(list(files.values()), spec.names, sizes, spec.keypoint_values)
    return labels | dict(zip(files, parsed, strict=True))
