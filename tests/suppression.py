"""Detections of boxes and scores of all points, as tests of suppression have them."""

from torch import Tensor

from yoloyard.common.nms import suppress_found
from yoloyard.models.heads.head import above


def suppress(
    boxes_xyxy: Tensor, scores: Tensor, conf: float, iou: float, max_det: int, multi_label: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `suppress_found` gives for boxes (B, P, 4) whose scores (B, P, C) are above `conf`."""
    images, points, labels, values = above(scores, conf, multi_label)
    return suppress_found(len(scores), images, boxes_xyxy[images, points], values, labels, iou, max_det)
