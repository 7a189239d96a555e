"""The two splits of a run: loaded, looked over and cut to what the settings ask for."""

from __future__ import annotations

import dataclasses
import logging
import shlex

from yoloyard.common.errors import UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.data.audit.duplicates import duplicate_problem, find_duplicates
from yoloyard.data.audit.problems import KINDS
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.index.index import Index, image_facts_folder, load_index
from yoloyard.data.index.selection import class_numbers, select

log = logging.getLogger(__name__)

PROBLEMS_SHOWN = 5  # of a kind
MOST_UNUSABLE = 0.1  # share of a split's images; where more can't be used, something is wrong with the set as a whole


def load_splits(spec: DataSpec, config: TrainConfig) -> tuple[Index, Index]:
    """What a new run trains on and what its validation counts; says what is wrong with the data and what is left out.

    Raises UserError where too much of a split can't be used, or, with `strict`, anything.
    """
    train_index, val_index = load_index(spec, "train"), load_index(spec, "val")
    val_index = _with_duplicates(train_index, val_index)
    for split, index in (("train", train_index), ("val", val_index)):
        _report_problems(index, split, len(index.problems) if config.strict else PROBLEMS_SHOWN)
    _refuse_broken(spec, train_index, val_index, config.strict)
    train_index, val_index = select_splits(config, train_index, val_index)
    _report_selection(config, spec, train_index, val_index)
    return train_index, val_index


def load_splits_again(spec: DataSpec, config: TrainConfig) -> tuple[Index, Index]:
    """The same for a run that goes on, or in the processes that join the first; says nothing of the data."""
    return select_splits(config, load_index(spec, "train"), load_index(spec, "val"))


def select_splits(config: TrainConfig, train_index: Index, val_index: Index) -> tuple[Index, Index]:
    """The parts of both splits that the settings ask for; what was found wrong stays with them."""
    train = select(train_index, config.classes, config.single_cls, config.fraction, config.seed)
    val = select(val_index, config.classes, config.single_cls)
    return (
        dataclasses.replace(train, problems=train_index.problems),
        dataclasses.replace(val, problems=val_index.problems),
    )


def _with_duplicates(train_index: Index, val_index: Index) -> Index:
    """The validation index, its problems joined by the images that training sees too."""
    images = train_index.paths, val_index.paths
    state = None
    if train_index.file is not None and val_index.file is not None:
        state = f"{train_index.file.name} {val_index.file.name}"  # which follow from all paths, lengths and times
    duplicates = find_duplicates(*images, image_facts_folder(), state)
    problems = [duplicate_problem(duplicate, *images, "train") for duplicate in duplicates]
    return dataclasses.replace(val_index, problems=(*val_index.problems, *problems))


def _report_problems(index: Index, split: str, shown: int) -> None:
    """Say how many images are left out, and of each kind of problem how many there are and which."""
    if index.skipped:
        log.info(f"{split}: {index.skipped} of {index.skipped + len(index)} images can't be used and are left out")
    if index.ignore.any():
        log.info(f"{split}: {index.ignore.sum()} of {len(index.ignore)} boxes are to be ignored (crowd, difficult)")
    for kind, is_error in KINDS.items():
        problems = [problem for problem in index.problems if problem.kind == kind]
        if problems:
            log.info(f"{split}: {kind}, {len(problems)} {'time' if len(problems) == 1 else 'times'}:")
        most = shown if is_error else 1
        for problem in problems[:most]:
            log.info(f"  {problem}")
        if len(problems) > most:
            log.info(f"  ... and {len(problems) - most} more; the report lists them")


def _refuse_broken(spec: DataSpec, train_index: Index, val_index: Index, strict: bool) -> None:
    """Raise UserError where the data are not worth a run: too much can't be used, or anything if `strict`."""
    errors = sum(problem.is_error for index in (train_index, val_index) for problem in index.problems)
    if strict and errors:
        raise UserError(
            f"--strict: the data have {errors} {'error' if errors == 1 else 'errors'}, listed above; fix them, "
            "or leave out --strict to train without what can't be used"
        )
    for split, index in (("train", train_index), ("val", val_index)):
        total = index.skipped + len(index)
        if index.skipped > MOST_UNUSABLE * total:
            raise UserError(
                f"{spec.path}: {index.skipped} of the {total} images of {split!r} can't be used, more than "
                f"{MOST_UNUSABLE:.0%}; fix them or take them out of the set; "
                f"`yoloyard data check {shlex.quote(str(spec.path))}` lists all"
            )


def _report_selection(config: TrainConfig, spec: DataSpec, train_index: Index, val_index: Index) -> None:
    if config.classes is not None:
        chosen = ", ".join(spec.names[number] for number in class_numbers(config.classes, spec.names))
        log.info(
            f"classes {chosen} alone: {len(train_index.boxes)} boxes for training, {len(val_index.boxes)} for "
            "validation; images without them stay as background"
        )
    if config.single_cls:
        log.info(f"all classes are one: {train_index.names[0]}")
    if config.fraction < 1:
        log.info(f"fraction {config.fraction:g}: {len(train_index)} training images are used")
