"""The two splits of a run: loaded, looked over and cut to what the settings ask for."""

import dataclasses
import logging
import shlex

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.image_size import shape_of, size_text
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.config.settings import TrainConfig
from yoloyard.data.audit.duplicates import duplicate_problem, find_duplicates, known_duplicates, state_of
from yoloyard.data.audit.problems import SHOWN_ERRORS, summary
from yoloyard.data.formats.data_yaml import DataSpec
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.index.selection import class_numbers, select

log = logging.getLogger(__name__)

MAX_SHARE_UNUSABLE = 0.1  # of a split's images; where more can't be used, something is wrong with the set as a whole
# Below both, a search for duplicates takes a few seconds on one core: 20 ns a pair, and 50 ns a pixel of val where all
# its images look like those of train.
QUICK_PAIRS, QUICK_PIXELS = 10**8, 10**8


def load_splits(spec: DataSpec, config: TrainConfig) -> tuple[Index, Index]:
    """The splits of a new run, of whole images; logs what is wrong or left out.

    Raises UserError where too much is left out, UsageError where `--tile` would cut no training image.
    """
    splits = _load(spec)
    splits["val"] = _with_duplicates(spec, config, **splits)
    for split, index in splits.items():
        if index.skipped:
            log.info(f"{split}: {index.skipped} of {index.skipped + len(index)} images can't be used and are left out")
        if index.ignore.any():
            log.info(f"{split}: {index.ignore.sum()} of {len(index.ignore)} boxes are to be ignored (crowd, difficult)")
        for line in summary(split, index.problems, len(index.problems) if config.strict else SHOWN_ERRORS):
            log.info(line)
    errors = sum(problem.is_error for index in splits.values() for problem in index.problems)
    if config.strict and errors:
        raise UserError(
            f"--strict: the data have {errors} {'error' if errors == 1 else 'errors'}, listed above; fix them, "
            "or leave out --strict to train without what can't be used"
        )
    for split, index in splits.items():
        total = index.skipped + len(index)
        if index.skipped > MAX_SHARE_UNUSABLE * total:
            raise UserError(
                f"{spec.path}: {index.skipped} of the {total} images of {split!r} can't be used, more than "
                f"{MAX_SHARE_UNUSABLE:.0%}; fix them or take them out of the set; "
                f"`yoloyard data check {shlex.quote(str(spec.path))}` lists all"
            )
    train, val = _select(config, **splits)
    if config.classes is not None:
        chosen = ", ".join(spec.names[number] for number in class_numbers(config.classes, spec.names))
        log.info(
            f"classes {chosen} alone: {len(train.boxes)} boxes for training, {len(val.boxes)} for "
            "validation; images without them stay as background"
        )
    if config.single_cls:
        log.info(f"all classes are one: {train.names[0]}")
    if config.fraction < 1:
        log.info(f"fraction {config.fraction:g}: {len(train)} training images are used")
    if config.tile and (train.sizes <= shape_of(config.tile)).all():
        height, width = train.sizes.max(axis=0).tolist()
        raise UsageError(
            f"--tile {size_text(config.tile)}: no training image is larger than a tile, all are within "
            f"{height}x{width} pixels; leave out --tile, or say a smaller one"
        )
    return train, val


def load_splits_again(spec: DataSpec, config: TrainConfig, pixels: PixelSpec | None = None) -> tuple[Index, Index]:
    """The splits of a run that has begun, made of its `pixels`: to go on with it, or to join it. Logs no problems."""
    return _select(config, **_load(spec if pixels is None else spec.with_pixels(pixels, "the run")))


def _load(spec: DataSpec) -> dict[str, Index]:
    """Both splits whole; the images of val are made as those of train."""
    train = load_index(spec, "train")
    return {"train": train, "val": load_index(spec.with_pixels(train.pixels, "train"), "val")}


def _select(config: TrainConfig, train: Index, val: Index) -> tuple[Index, Index]:
    """The parts of both splits that the settings ask for; all problems stay with them."""
    part = select(train, config.classes, config.single_cls, config.fraction, config.seed)
    of_val = select(val, config.classes, config.single_cls)
    return dataclasses.replace(part, problems=train.problems), dataclasses.replace(of_val, problems=val.problems)


def _with_duplicates(spec: DataSpec, config: TrainConfig, train: Index, val: Index) -> Index:
    """`val`, its problems joined by the images that are in `train` too, if that is quick, known or asked for."""
    state = state_of(train, val)
    pixels = int(val.sizes.prod(axis=1, dtype=int).sum())
    if config.check_duplicates or config.strict or (len(train) * len(val) <= QUICK_PAIRS and pixels <= QUICK_PIXELS):
        duplicates = find_duplicates(train.paths, val.paths, state, spec.pixels.files)
    elif (known := known_duplicates(state)) is not None:
        duplicates = known
    else:
        log.info(
            f"val ({len(val):,} images) was not searched for images of train ({len(train):,}), which would take long: "
            "--check-duplicates does it before this run, "
            f"yoloyard data check {shlex.quote(str(spec.path))} once for all runs"
        )
        return val
    problems = [duplicate_problem(each, train.paths, val.paths, "train") for each in duplicates]
    return dataclasses.replace(val, problems=(*val.problems, *problems))
