"""What is traced: a detector with its decoding, without anything that only this machine or torch's compiler knows.

Shapes: B batch, P anchor points, C classes, D most detections.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from yoloyard.common.errors import UserError, user_line
from yoloyard.models.custom_model import is_custom
from yoloyard.models.detector import Detector

if TYPE_CHECKING:
    from yoloyard.export.job import Job

EXAMPLE_BATCH = 2  # torch takes 0 and 1 for sizes that never change
EXAMPLE_CELLS = 10  # a side of the example in cells of the largest stride, where any size will do

# Scores (B, P) of the boxes that are kept, 0 for the others. It is traced, not run: ONNX has an operator for it.
torch.library.define(
    "yoloyard::suppress", "(Tensor boxes, Tensor class_scores, float conf, float iou, int max_det) -> Tensor"
)


@torch.library.register_fake("yoloyard::suppress")
def _(boxes: Tensor, class_scores: Tensor, conf: float, iou: float, max_det: int) -> Tensor:
    return class_scores.new_empty(class_scores.shape[0], class_scores.shape[2])


class Graph(nn.Module):
    """Images float32 (B, channels, H, W), 0 .. 1, to the outputs of `--outputs`, all float32.

    In float16 (`half`) are weights and arithmetic, but not the decoding. `limits` has conf, iou and max_det of
    `--outputs nms`; a detector that needs no suppression has no use for iou.
    """

    def __init__(
        self, detector: Detector, outputs: str, is_half: bool, limits: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.detector = detector.fused()  # not prepared for this CPU: oneDNN's joined layers exist in torch alone
        self.outputs, self.is_half, self.limits = outputs, is_half, limits
        if is_half:
            constants = {name: getattr(detector.head, name).clone() for name in detector.head.constants}
            self.detector.half()
            for name, value in constants.items():  # such as anchors, a part of the decoding
                setattr(self.detector.head, name, value)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.detector(images.half() if self.is_half else images)
        maps = tuple(level.float() for level in maps)
        if self.outputs == "maps":
            return maps
        boxes_xyxy, scores = self.detector.decode(maps)
        if self.limits is None:
            return boxes_xyxy, scores
        if self.detector.head.needs_suppression:
            return detections(boxes_xyxy, scores, **self.limits)
        return best_pairs(boxes_xyxy, scores, self.limits["conf"], self.limits["max_det"])


def detections(boxes_xyxy: Tensor, scores: Tensor, conf: float, iou: float, max_det: int) -> Tensor:
    """Boxes (B, P, 4) and scores (B, P, C) to the detections that `predict` finds, (B, D, 6), best first.

    A row is left, top, right, bottom, score, class; where there is no box, zeros and class -1. As in `predict`, a box
    has one class, its best.
    """
    best, labels = scores.max(dim=2)
    own = labels.unsqueeze(1) == torch.arange(scores.shape[2], device=labels.device).unsqueeze(1)  # (B, C, P)
    class_scores = torch.where(own, best.unsqueeze(1), 0.0)
    kept = torch.ops.yoloyard.suppress(boxes_xyxy, class_scores, conf, iou, max_det)
    # a small image may have fewer points than detections are asked for
    top, points = nn.functional.pad(kept, (0, max_det)).topk(max_det, dim=1)
    points = points.clamp(max=kept.shape[1] - 1)
    return _rows(boxes_xyxy, points, top, labels.gather(1, points), top > 0)


def best_pairs(boxes_xyxy: Tensor, scores: Tensor, conf: float, max_det: int) -> Tensor:
    """Boxes (B, P, 4) and scores (B, P, C) to the best pairs of box and class, (B, D, 6) as `detections` gives them.

    Overlapping boxes all stay, as those of branches that find each object once.
    """
    # a small image may have fewer points; the best pairs lie in as many points, those of the best single scores
    padded = nn.functional.pad(scores, (0, 0, 0, max_det))
    _, points = padded.amax(dim=2).topk(max_det, dim=1)
    best = padded.gather(1, points.unsqueeze(2).expand(-1, -1, scores.shape[2]))
    top, pairs = best.flatten(1).topk(max_det, dim=1)
    points = points.gather(1, pairs // scores.shape[2]).clamp(max=scores.shape[1] - 1)
    return _rows(boxes_xyxy, points, top, pairs % scores.shape[2], top > conf)


def _rows(boxes_xyxy: Tensor, points: Tensor, scores: Tensor, labels: Tensor, is_box: Tensor) -> Tensor:
    """The rows of `detections`: of each (B, D) its point in boxes (B, P, 4), score, class, and whether there is one."""
    boxes = boxes_xyxy.gather(1, points.unsqueeze(2).expand(-1, -1, 4))
    rows = torch.cat((boxes, scores.unsqueeze(2), labels.unsqueeze(2).to(boxes.dtype)), dim=2)
    return torch.where(is_box.unsqueeze(2), rows, rows.new_tensor([0.0, 0, 0, 0, 0, -1]))


def graph_of(job: Job) -> tuple[Graph, Tensor]:
    """What a job's files compute, and example images (2, channels, H, W)."""
    graph = Graph(job.detector, job.facts.outputs, job.config.half, job.facts.suppression).eval()
    height, width = job.facts.shape or 2 * (EXAMPLE_CELLS * max(job.detector.strides),)
    shape = EXAMPLE_BATCH, job.detector.image_channels, height, width
    return graph, torch.rand(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def traced(job: Job) -> ExportedProgram:
    """The graph as torch.export traces it: any batch and, without a shape of its own, any multiples of the stride.

    Raises UserError for a custom model that torch can't trace, with its line where that is known.
    """
    graph, images = graph_of(job)
    stride = max(job.detector.strides)
    sides = {} if job.facts.shape else {2: stride * Dim("height", min=1), 3: stride * Dim("width", min=1)}
    with quiet_torch(), explained(job, "torch can't trace this network"):
        program = torch.export.export(graph, (images,), dynamic_shapes=({0: Dim("batch"), **sides},), strict=False)
        with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without numbers
            check_open_sizes(job, graph, program.module())
    program.example_inputs = None  # which would lie in the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def check_open_sizes(job: Job, graph: Graph, program: Callable[[Tensor], Any]) -> None:
    """Compare the shapes that `program` gives for another batch, and another size where it is open, with the graph's.

    Where a network computes with numbers that `len` gives, torch takes those of the example for all sizes, without an
    error. Raises UserError.
    """
    stride = max(job.detector.strides)
    sides = job.facts.shape or (stride * (EXAMPLE_CELLS + 2), stride * (EXAMPLE_CELLS - 2))
    images = torch.zeros(EXAMPLE_BATCH + 1, job.detector.image_channels, *sides)
    expected, found = ([part.shape for part in _parts(each(images))] for each in (graph, program))
    if found != expected:
        raise UserError(f"traced with one size it gives {found} for another one, not {expected}")


def _parts(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@contextlib.contextmanager
def explained(job: Job, what: str) -> Iterator[None]:
    """Name the line, or at least the file, of a custom model that torch fails on. Raises UserError."""
    try:
        yield
    except Exception as error:
        model = str(job.metadata.get("model"))
        place = user_line(error) or (model if is_custom(model) else "")
        if not place:
            raise
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{place}: {what}: {type(error).__name__}: {reason:.300}") from error


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Without torch's warnings about its own internals, and the graph that it prints where it can't go on."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            for category in (FutureWarning, DeprecationWarning, torch.jit.TracerWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.disable(before)
