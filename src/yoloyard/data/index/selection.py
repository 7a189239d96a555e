"""The part of a split that is trained on or counted: some classes, all classes as one, a share of the images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.overrides import unknown_name
from yoloyard.data.formats.labels import composed
from yoloyard.data.index.index import INDEXES, Index, find_index, save_index

SELECTION_VERSION = 1  # part of the cache's key: raise it when a selection means something else
ONE_CLASS = ("object",)


def select(
    index: Index, classes: str | None = None, single_cls: bool = False, fraction: float = 1.0, seed: int = 0
) -> Index:
    """The index with only these `classes`, all as one if `single_cls`, and a `fraction` of the images.

    `classes` are numbers or names joined by commas; numbers and names of the index stay, and an image whose boxes all
    go stays without objects. A smaller fraction is contained in a larger one of the same seed. The selection is in the
    cache beside the index that it was made of, so that workers map it as well.
    Raises UsageError for an unknown class or a fraction that isn't above 0, UserError if not a box is left.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--fraction must be above 0 and at most 1, not {fraction:g}")
    numbers = None if classes is None else class_numbers(classes, index.names)
    if numbers is None and not single_cls and fraction == 1:
        return index
    file = None
    if index.file is not None:
        chosen = [index.file.name, numbers, single_cls, fraction, seed if fraction < 1 else None]
        file = INDEXES.path([SELECTION_VERSION, *chosen])
        if (kept := find_index(file)) is not None:
            return kept
    images = np.sort(np.random.default_rng(seed).permutation(len(index))[: max(1, round(fraction * len(index)))])
    image_of_box = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    boxes = np.isin(image_of_box, images)
    if numbers is not None:
        boxes &= np.isin(index.labels, numbers)
    counts = np.bincount(image_of_box[boxes], minlength=len(index))[images]
    selected = replace(
        index,
        paths=index.paths.at(images),
        file_names=index.file_names.at(images),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        **{name: getattr(index, name)[images] for name in ("sizes", "source_ids")},
        **{name: getattr(index, name)[boxes] for name in ("boxes", "labels", "ignore")},
        file=None,
    )
    if single_cls:
        none = np.zeros_like(selected.labels)
        selected = replace(selected, names=ONE_CLASS, labels=none, category_ids=np.zeros(1, np.int64))
    if selected.ignore.all():
        raise UserError(
            f"not a single box is left of {len(index.boxes)} in the {len(index)} images beside {index.paths[0]}: "
            + (f"choose other --classes than {classes}" if numbers is not None else "raise --fraction")
        )
    return selected if file is None else save_index(selected, file)


def names_of(names: tuple[str, ...], single_cls: bool) -> tuple[str, ...]:
    """The class names that a selection has."""
    return ONE_CLASS if single_cls else names


def class_numbers(classes: str, names: Sequence[str]) -> tuple[int, ...]:
    """The numbers, ascending, of classes given by number or name and joined by commas; a name may have commas itself.

    The numbers, joined by commas, give the same classes again. Raises UsageError, also where a number is the name of
    another class.
    """
    names, classes = list(map(composed, names)), composed(classes).strip()
    words = [classes] if classes in names else list(filter(None, map(str.strip, classes.split(","))))
    if not words:
        raise UsageError("--classes names no class: say numbers or names joined by commas, such as --classes 0,2")
    found = set()
    for word in words:
        if word not in names and not word.isdecimal():
            raise UsageError(unknown_name(word, names, "class"))
        number = names.index(word) if word in names else int(word)
        if number >= len(names):
            raise UsageError(f"--classes {word}: the classes are 0 to {len(names) - 1} ({', '.join(names[:10])})")
        for text in (word, str(number)):  # both, for a run goes on with the numbers
            if text in names and text.isdecimal() and int(text) < len(names) and names.index(text) != int(text):
                raise UsageError(
                    f"--classes {classes}: {text} is the name of class {names.index(text)} and the number of class "
                    f"{int(text)} ({names[int(text)]!r}); give these classes names that are no numbers"
                )
        found.add(number)
    return tuple(sorted(found))
