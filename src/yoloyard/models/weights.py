"""Weight files: a safetensors file of one network's tensors, with what is needed to use them as JSON metadata.

Nothing in such a file is executed when it is read, and damage is detected.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from yoloyard.common import files
from yoloyard.common.errors import UsageError, UserError
from yoloyard.models import custom_model, registry
from yoloyard.models.detector import Detector
from yoloyard.models.importing import importers
from yoloyard.models.importing.torch_files import is_torch_file, read_bytes
from yoloyard.models.pyramid import has_p2

WEIGHT_FILES = (".safetensors", ".pt", ".pth")  # suffixes that are read


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `state` and `metadata` (each value anything JSON can hold) to `path`, whole or not at all.

    `load_model` needs the keys `model` and `model_arguments`. Raises UserError if the disk is full or not writable.
    """
    # safetensors wants contiguous tensors that share no memory
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors, {key: json.dumps(value) for key, value in metadata.items()})
    files.write_whole(path, lambda temporary: temporary.write_bytes(content))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the metadata of a weight file, or of another project's (see `importers`).

    Raises UserError, naming the file, if it is missing, cut short, or something else.
    """
    if path.suffix.lower() in files.EXPORTED_FILES:
        raise UserError(f"{path} is an exported file: this takes the weights file that it was made from")
    if is_torch_file(path):
        return importers.read_checkpoint(path)
    content = read_bytes(path)
    try:
        state = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a whole weight file: it was cut short, damaged, or is no safetensors file ({error})."
        ) from error
    # the header: eight bytes of its length, then JSON, checked above
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        metadata = {key: json.loads(value) for key, value in header.get("__metadata__", {}).items()}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is a safetensors file, but wasn't written by yoloyard.") from error
    return state, metadata


def load_model(path: Path) -> tuple[Detector, dict[str, Any]]:
    """The detector that a weight file holds, on the CPU in evaluation mode, and the file's metadata.

    Raises UserError as `read_weights` does, and if the file doesn't say what model it is or doesn't fit it.
    """
    state, metadata = read_weights(path)
    model, arguments = metadata.get("model"), metadata.get("model_arguments")
    if not isinstance(model, str) or not isinstance(arguments, dict):
        raise UserError(f"{path} holds tensors but doesn't say of which model; it wasn't written by yoloyard.")
    is_custom = custom_model.is_custom(model)
    try:
        if is_custom:
            detector = custom_model.beside(path, metadata).build(**arguments)
        else:
            with torch.device("meta"):  # no memory, no random numbers for weights that are replaced at once
                detector = registry.build(model, **arguments)
    except (UsageError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} names a model that this version can't build: {error}") from error
    own = {name: tensor.shape for name, tensor in detector.state_dict().items()}
    wrong = [name for name in own.keys() | state.keys() if name not in state or state[name].shape != own.get(name)]
    if wrong:
        raise UserError(f"{path} doesn't fit the model {model} that it names: {_summary(sorted(wrong))}.")
    detector.load_state_dict(state, assign=not is_custom)
    return detector.eval(), metadata


@dataclass(frozen=True)
class TransferReport:
    """Which of a detector's tensors came from other weights. `str()` makes the one line to print."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]  # no tensor of this name and shape
    unused: tuple[str, ...]  # tensors of the source that had no place
    classes: tuple[str, ...] = ()  # classes whose rows of the last layer were taken, by name
    channels: tuple[int, int] | None = None  # of the source's images and ours, where they differ

    def __str__(self) -> str:
        line = f"took {len(self.taken)} of {len(self.taken) + len(self.fresh)} tensors"
        without_place = [name for name in self.unused if name not in self.fresh]
        line += f"; new: {_summary(self.fresh)}" if self.fresh else ""
        line += f"; not used: {_summary(without_place)}" if without_place else ""
        line += f"; class rows taken by name: {', '.join(self.classes)}" if self.classes else ""
        if self.channels is None:
            return line
        source, own = self.channels
        return f"{line}; the first layer: each of {own} channels has 1/{own} of the sum over the {source} of the file"


def transfer(
    detector: Detector, state: Mapping[str, Tensor], names: Sequence[str] = (), source_names: Sequence[str] = ()
) -> TransferReport:
    """Copy into `detector` what has an equal name and shape in `state`; the rest keeps its values.

    `names` are the detector's classes, `source_names` those of `state`. Where they differ, the last layers' rows of
    classes of the same name (case and spaces at the ends ignored), and those of no class, are copied as well, if the
    layers before them have the same width. What `state` has not of a head's second branches is that of the first ones.

    Layers that take images of other channels are converted: see `for_channels`. Where one of both has a level of stride
    4, branches go to those of the same stride.
    """
    own = detector.state_dict()
    if levels := has_p2(own) - has_p2(state):
        state = {_level_moved(name, levels): tensor for name, tensor in state.items()}
    given = tuple(state)
    state, channels = _of_channels(own, state, detector.image_channels)
    for part, first in ((f"head.{part}.", f"head.{first}.") for part, first in detector.head.begins_as.items()):
        state = {name.replace(first, part): state[name] for name in state if name.startswith(first)} | dict(state)
    plain, source_plain = ([name.strip().lower() for name in each] for each in (names, source_names))
    renamed = bool(names and source_names) and plain != source_plain
    last = [f"head.{layer}.{part}" for layer in detector.head.last_layers for part in ("weight", "bias")]
    # Rows of other classes, or in another order, are no use by their position.
    skipped = last if renamed else ()
    taken = {n for n in own if n in state and state[n].shape == own[n].shape and n not in skipped}
    for name in taken:
        own[name].copy_(state[name])
    fresh = tuple(name for name in own if name not in taken)
    source_rows = {name: row for row, name in enumerate(source_plain)}
    pairs = [(row, source_rows[name]) for row, name in enumerate(plain) if name in source_rows]
    if not detector.head.learns_single_class and 1 in (len(names), len(source_names)):
        pairs = []
    (shared, rows), (source_shared, source) = map(detector.head.class_rows, (len(names), len(source_names)))
    counts = (len(sum(rows, shared)), len(sum(source, source_shared)))
    classes: tuple[str, ...] = ()
    for name in last:
        weight = f"{name.rpartition('.')[0]}.weight"  # whose width counts for the bias, too
        fits = name in fresh and {name, weight} <= state.keys() and own[weight].shape[1:] == state[weight].shape[1:]
        if fits and (len(own[name]), len(state[name])) == counts:
            for ours, theirs in [(shared, source_shared), *((rows[a], source[b]) for a, b in pairs)]:
                own[name][ours] = state[name][theirs].to(own[name])
            classes = tuple(names[row] for row, _ in pairs)
    kept = tuple(name for name in own if name in taken)
    return TransferReport(kept, fresh, tuple(name for name in given if name not in taken), classes, channels)


def for_channels(weights: Tensor, channels: int) -> Tensor:
    """The weights (out, channels', k, k) of a layer that takes images, for images of other `channels`.

    Each channel gets the sum over those of before, divided by their new number. So grey gives exactly what it gave as
    three equal channels, and an image that is alike in all channels gives the same with any number of them.
    """
    return (weights.sum(dim=1, keepdim=True) / channels).repeat(1, channels, 1, 1)


def _of_channels(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], channels: int
) -> tuple[Mapping[str, Tensor], tuple[int, int] | None]:
    """`state` with the layers that take images converted, and the channels before and after; None: they are equal.

    A layer takes images if it has the channels of the first one, as a second backbone has.
    """
    first = next((name for name, value in own.items() if value.ndim == 4), "")
    if first not in state or state[first].ndim != 4 or (before := state[first].shape[1]) == channels:
        return state, None
    takes = {
        name: for_channels(value, channels)
        for name, value in state.items()
        if name in own and value.ndim == 4 and (value.shape[1], own[name].shape[1]) == (before, channels)
    }
    return {**state, **takes}, (before, channels)


def _level_moved(name: str, levels: int) -> str:
    """The name of a branch's tensor so many levels of the head later; any other as it is."""
    return re.sub(r"^(head\.\w+_branches\.)(\d+)", lambda found: f"{found[1]}{int(found[2]) + levels}", name)


def _summary(names: Sequence[str]) -> str:
    """Tensor names as the parts of the network that they belong to, with their number: "head.class_branches (75)"."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    shown = [f"{part} ({count})" for part, count in parts.most_common(4)]
    return ", ".join(shown) + (f", and {len(parts) - 4} more" if len(parts) > 4 else "")
