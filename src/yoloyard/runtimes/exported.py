"""A network in an exported file as a runtime, whichever library computes it.

Shapes: B batch, H W pixels, P points, C classes, D detections of a file with suppression inside.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.boxes import cxcywh_to_xyxy
from yoloyard.common.device import Precision, choose_device
from yoloyard.common.errors import UserError, memory_line
from yoloyard.common.log import ONCE
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.structures import images_to_float
from yoloyard.config.settings import EvaluationConfig
from yoloyard.models.heads.head import Found, above
from yoloyard.runtimes.metadata import BOXES, DETECTIONS, OUTPUTS, SCORES, FileFacts

log = logging.getLogger(__name__)

JOINED = "joined"  # the only output of other programs: (B, 4 + C, P), centre x, centre y, width, height, scores
ASSUMED_STRIDE = 32  # of a file that says none
PROBED_PIXELS = 320  # side of the image by which such a file is recognised, if it takes any size


@dataclass(frozen=True)
class Program:
    """An exported file as its library has loaded it."""

    inputs: Sequence[Sequence[int | None]]  # shapes; None: any number
    outputs: Sequence[str]  # names; empty if the format keeps none: of ours the order says them
    compute: Callable[[Tensor], Tensor | Sequence[Tensor]]  # float32 (B, C, H, W), on `device`, to the outputs there
    device: torch.device


class Exported:
    """The program of the file at `path`, with what that says of itself, as a runtime: see `Runtime`.

    `names`: the classes of a file that doesn't say them. Not to be called by several threads at once. Raises UserError
    for a program without boxes, and for `names` that are missing, too few or too many.
    """

    def __init__(self, path: Path, program: Program, document: Mapping[str, Any] | None, names: Sequence[str]) -> None:
        self.path, self.device, self._program = path, program.device, program
        channels = PixelSpec.of(document or {}).channels
        if len(program.inputs) != 1 or len(program.inputs[0]) != 4 or program.inputs[0][1] != channels:
            found = ", ".join(map(shape_text, program.inputs)) or "nothing"
            line = f"{path} is no detector that can be used: its input is {found}"
            raise UserError(f"{line}, not images (B, {channels}, H, W)")
        self._whole_batch, _, height, width = program.inputs[0]
        self.max_batch = self._whole_batch
        self.fixed_shape = (height, width) if height and width else None
        self.metadata: Mapping[str, Any] = document or {}
        self.strides: tuple[int, ...] = (ASSUMED_STRIDE,)
        self.suppression = True
        self.precision = Precision(self.device.type, torch.float32)
        if document is None:
            self._places, classes = self._recognised()
            known = tuple(names)
        else:
            facts = FileFacts(**document["file"])
            if not (wanted := OUTPUTS[facts.outputs]):
                raise UserError(
                    f"{path} holds raw maps (--outputs {facts.outputs}), for the compilers of chips: use the weights "
                    "file, or an export with --outputs boxes"
                )
            there = list(program.outputs or wanted)
            if missing := set(wanted) - set(there):
                raise UserError(f"{path} is damaged: it has no output {' and '.join(sorted(missing))}")
            self._places = {name: there.index(name) for name in wanted}
            known, classes = tuple(facts.names), len(facts.names)
            self.suppression = facts.needs_suppression
            self.strides, self.max_batch = tuple(facts.strides), self.max_batch or facts.max_batch
            self.precision = Precision(self.device.type, getattr(torch, facts.precision))
        if not known:
            remedy = "name them, --names a,b or --names data.yaml; `serve` takes files of `yoloyard export` alone"
            raise UserError(f"{path} doesn't say its {classes} classes: {remedy}")
        if len(known) != classes or (names and tuple(names) != known):
            own = f": {', '.join(known)}" if document else ""
            raise UserError(f"--names says {len(names)} classes ({', '.join(names)}), {path} has {classes}{own}")
        self.names = known

    def candidates(self, images: Tensor, conf: float, multi_label: bool) -> Found:
        """As `Runtime.candidates` says. Of a file with suppression inside these are the boxes that it kept."""
        outputs = self.outputs(images_to_float(images))
        if DETECTIONS in outputs:
            rows = outputs[DETECTIONS]
            where, places = ((rows[..., 5] >= 0) & (rows[..., 4] > conf)).nonzero(as_tuple=True)
            found = rows[where, places]
            return where, found[:, :4], found[:, 4], found[:, 5].long()
        where, points, labels, values = above(outputs[SCORES], conf, multi_label)
        return where, outputs[BOXES][where, points], values, labels

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """As `Runtime.outputs` says."""
        shape, stride = tuple(images.shape[2:]), max(self.strides)
        if self.max_batch is not None and len(images) > self.max_batch:
            raise UserError(f"{self.path} takes at most {self.max_batch} images at once, not {len(images)}")
        if shape != self.fixed_shape if self.fixed_shape else any(side % stride for side in shape):
            takes = shape_text(self.fixed_shape) if self.fixed_shape else f"multiples of {stride} pixels"
            raise UserError(f"{self.path} takes images of {takes}, not {shape_text(shape)}")
        found = self._compute(images)
        if JOINED in self._places:
            boxes, scores = found[self._places[JOINED]].transpose(1, 2).split((4, len(self.names)), dim=2)
            return {BOXES: cxcywh_to_xyxy(boxes), SCORES: scores}
        return {name: found[place] for name, place in self._places.items()}

    def _compute(self, images: Tensor) -> list[Tensor]:
        """All outputs, float32. Where a batch has one size, a smaller one is filled up and cut again."""
        short = (self._whole_batch or 0) - len(images)
        filled = torch.cat((images, images[:1].expand(short, -1, -1, -1))) if short > 0 else images
        try:
            found = self._program.compute(filled.to(self.device))
        except Exception as error:  # each library has errors of its own
            if memory_line(error):  # a smaller batch may do
                raise
            raise UserError(f"{self.path} can't be computed: {reason(error)}") from error
        found = (found,) if isinstance(found, Tensor) else found
        if any(len(each) != len(filled) for each in found):  # sizes that an export has fixed fold into the batch
            raise UserError(f"{self.path} takes other images than it says: its outputs are not one for each image")
        return [each[: len(images)].float() for each in found]

    def _recognised(self) -> tuple[dict[str, int], int]:
        """Places of the outputs and class count of a file without metadata, by what it makes of an image."""
        height, width = self.fixed_shape or (PROBED_PIXELS, PROBED_PIXELS)
        shapes = [output.shape for output in self._compute(torch.zeros(1, 3, height, width))]
        ranks = [len(shape) for shape in shapes]
        if ranks == [3] and 4 < shapes[0][1] <= shapes[0][2]:
            return {JOINED: 0}, shapes[0][1] - 4
        if ranks == [3, 3] and shapes[0][1] == shapes[1][1] and 4 in (shapes[0][2], shapes[1][2]):
            boxes = int(shapes[0][2] != 4)
            return {BOXES: boxes, SCORES: 1 - boxes}, shapes[1 - boxes][2]
        raise UserError(
            f"{self.path} is no detector that can be used: it makes {', '.join(map(shape_text, shapes))} of an image; "
            "boxes (1, P, 4) with scores (1, P, C), or both in one (1, 4 + C, P), are understood"
        )


def announce(network: Exported, settings: EvaluationConfig) -> None:
    """Log what a user of the file should know, a line each."""
    name, pixels = network.path.name, network.fixed_shape and shape_text(network.fixed_shape)
    kept = network.metadata.get("file", {}).get("suppression")
    if not network.metadata:
        line = f"{name} has no metadata of yoloyard: assumed are RGB, 0 .. 1, a centred letterbox on grey, "
        line += f"{f'{pixels} pixels' if pixels else f'multiples of {ASSUMED_STRIDE} pixels'}, confidence above "
        log.info(f"{line}{settings.conf:g}, suppression at IoU {settings.iou:g}", extra=ONCE)
    elif pixels:
        log.info(f"{name} takes images of {pixels} pixels alone: all are padded to that", extra=ONCE)
    if kept and (settings.conf < kept["conf"] or settings.iou > kept["iou"] or settings.max_det > kept["max_det"]):
        does, overlap = ("suppresses", f", above IoU {kept['iou']:g}") if network.suppression else ("selects", "")
        limits = f"confidence {kept['conf']:g}{overlap} or beyond {kept['max_det']} boxes an image"
        log.info(f"{name} {does} by itself: nothing comes out of it below {limits}", extra=ONCE)


def device_for(path: Path, name: str, kinds: Sequence[str], remedy: str = "leave out --device") -> torch.device:
    """The device that a user means by `name` for a file that runs on devices of these `kinds` here.

    With auto it is the CPU where the accelerator is none of them. Raises UsageError or UserError with the `remedy`.
    """
    device = choose_device(name)
    if device.type in kinds:
        return device
    if name.strip().lower() != "auto":
        raise UserError(f"{path} runs on {' or '.join(kinds)} here, not on {device}: {remedy}")
    return torch.device("cpu")


def reason(error: BaseException) -> str:
    """What a library says in an error, in one line: of a long text the beginning and the end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:80]} ... {text[-220:]}"


def shape_text(shape: Sequence[int | None]) -> str:
    """Such as 2 x 3 x ? x ?."""
    return " x ".join("?" if side is None else str(side) for side in shape)
