"""YOLO11 (2024): C3k2 stages, SPPF and attention, a path-aggregation neck, a head with depthwise class branches.

Names and shapes are those of `pyramid`. Source: the YOLO11 release (2024) and its published layer table.
"""

from functools import partial

from yoloyard.models.attention import C2PSA
from yoloyard.models.blocks import SPPF, C3k2
from yoloyard.models.detector import Scale
from yoloyard.models.pyramid import P2, PathAggregation, PyramidBackbone, PyramidDetector

SCALES = {
    "n": Scale(depth=0.50, width=0.25, max_channels=1024),
    "s": Scale(depth=0.50, width=0.50, max_channels=1024),
    "m": Scale(depth=0.50, width=1.00, max_channels=512),
    "l": Scale(depth=1.00, width=1.00, max_channels=512),
    "x": Scale(depth=1.00, width=1.50, max_channels=512),
}
STAGE_WIDTHS = (256, 512, 512, 1024)  # of the backbone, before scaling
ALL_C3K = "mlx"  # sizes whose every stage is made of C3k; n and s have them at the deepest stages only


class Neck(PathAggregation):
    """The neck, of C3k2 stages."""

    def __init__(self, scale: Scale, all_c3k: bool, has_p2: bool = False) -> None:
        stage = partial(C3k2, repeats=scale.repeats(2))
        super().__init__(scale, STAGE_WIDTHS, partial(stage, c3k=all_c3k), partial(stage, c3k=True), has_p2)


def build(
    scale: str,
    num_classes: int,
    channels: int = 3,
    class_width: int | None = None,
    sppf_activation: bool = True,
    paths: str = "many",
) -> PyramidDetector:
    """A YOLO11 of the size n, s, m, l or x, or of these with P2, with fresh weights, whose head has these `paths`.

    `class_width` and `sppf_activation` fit it to imported files.
    """
    has_p2, scale = scale.endswith(P2), scale.removesuffix(P2)
    size, all_c3k = SCALES[scale], scale in ALL_C3K
    stage = partial(C3k2, repeats=size.repeats(2))
    shallow, deep = partial(stage, c3k=all_c3k, expansion=0.25), partial(stage, c3k=True)
    backbone = PyramidBackbone(
        size,
        channels,
        STAGE_WIDTHS,
        (shallow, shallow, deep, deep),
        levels=3 + has_p2,
        pool=lambda width: SPPF(width, width, sppf_activation),
        attention=partial(C2PSA, repeats=size.repeats(2)),
    )
    neck = Neck(size, all_c3k, has_p2)
    return PyramidDetector(size, backbone, neck, num_classes, depthwise=True, class_width=class_width, paths=paths)
