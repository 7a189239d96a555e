"""What an exported file says of itself: the metadata of the weights it came from, and how it must be fed and read.

Every exported file carries one JSON document under KEY: in ONNX as a metadata property, in OpenVINO's IR as runtime
info, in torch's programs as an extra file. It is the weights file's metadata with one more key, `file`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

KEY = "yoloyard"
INPUT = "images"  # float32 (B, channels, H, W), 0 .. 1; three channels are RGB
BOXES, SCORES = "boxes", "scores"  # (B, P, 4) xyxy in input pixels and (B, P, C), of `--outputs boxes`
DETECTIONS = "detections"  # (B, D, 6) left, top, right, bottom, score, class, of `--outputs nms`; no box: class -1
OUTPUTS = {"boxes": (BOXES, SCORES), "nms": (DETECTIONS,), "maps": ()}  # by `--outputs`; maps are named map_STRIDE


@dataclass(frozen=True)
class FileFacts:
    """How an exported file is fed and read: the value of `file` in its metadata."""

    outputs: str  # one of OUTPUTS
    names: Sequence[str]
    strides: Sequence[int]
    shape: Sequence[int] | None  # the only (H, W); None: all multiples of the largest stride
    max_batch: int | None  # None: any number
    precision: str  # float32, float16, int8
    weights_sha256: str
    yoloyard: str  # version that wrote it
    opset: int | None = None
    suppression: dict[str, Any] | None = None  # conf, iou (1.0: of all overlaps), max_det of a file with `nms`
    needs_suppression: bool = True  # False: it finds each object once, and overlapping boxes must stay
    layout: str = "NCHW"
    colours: str = "RGB"
    input_range: Sequence[float] = (0.0, 1.0)
    letterbox: str = "scale to fit, bilinear, centred on grey 114, an odd pixel of padding right and below"
    format: int = 1

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return OUTPUTS[self.outputs] or tuple(f"map_{stride}" for stride in self.strides)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)
