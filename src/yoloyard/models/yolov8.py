"""YOLOv8 (2023): C2f stages, SPPF, a path-aggregation neck, an anchor-free head with plain class branches.

Names and shapes are those of `pyramid`. Source: the YOLOv8 release (2023) and its published layer table.
"""

from functools import partial

from yoloyard.models.blocks import SPPF, C2f
from yoloyard.models.detector import Scale
from yoloyard.models.pyramid import P2, PathAggregation, PyramidBackbone, PyramidDetector

SCALES = {
    "n": Scale(depth=0.33, width=0.25, max_channels=1024),
    "s": Scale(depth=0.33, width=0.50, max_channels=1024),
    "m": Scale(depth=0.67, width=0.75, max_channels=768),
    "l": Scale(depth=1.00, width=1.00, max_channels=512),
    "x": Scale(depth=1.00, width=1.25, max_channels=512),
}
STAGE_WIDTHS = (128, 256, 512, 1024)  # of the backbone, before scaling


class Neck(PathAggregation):
    """The neck, of C2f stages without shortcuts."""

    def __init__(self, scale: Scale, has_p2: bool = False) -> None:
        stage = partial(C2f, repeats=scale.repeats(3), shortcut=False)
        super().__init__(scale, STAGE_WIDTHS, stage, stage, has_p2)


def build(
    scale: str,
    num_classes: int,
    channels: int = 3,
    class_width: int | None = None,
    sppf_activation: bool = True,
    paths: str = "many",
) -> PyramidDetector:
    """A YOLOv8 of the size n, s, m, l or x, or of these with P2, with fresh weights, whose head has these `paths`.

    `class_width` and `sppf_activation` fit it to imported files.
    """
    has_p2, size = scale.endswith(P2), SCALES[scale.removesuffix(P2)]
    shallow = partial(C2f, repeats=size.repeats(3), shortcut=True)
    deep = partial(C2f, repeats=size.repeats(6), shortcut=True)
    stages = (shallow, deep, deep, shallow)
    pool = lambda width: SPPF(width, width, sppf_activation)  # noqa: E731
    backbone = PyramidBackbone(size, channels, STAGE_WIDTHS, stages, levels=3 + has_p2, pool=pool)
    neck = Neck(size, has_p2)
    return PyramidDetector(size, backbone, neck, num_classes, depthwise=False, class_width=class_width, paths=paths)
