"""Suppression of all points of a batch, for tests: what `suppress_found` gets is picked from dense scores here."""

from torch import Tensor

from yoloyard.common.nms import suppress_found


def suppress(
    boxes_xyxy: Tensor, scores: Tensor, conf: float, iou: float, max_det: int, multi_label: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Detections of each image from boxes (B, P, 4) and scores (B, P, C) that are above `conf`.

    With `multi_label` a point may give one detection for each class, else only one for its best class.
    """
    if multi_label and scores.shape[2] > 1:
        images, points, labels = (scores > conf).nonzero(as_tuple=True)
        values = scores[images, points, labels]
    else:
        best_scores, best_labels = scores.max(dim=2)
        images, points = (best_scores > conf).nonzero(as_tuple=True)
        values, labels = best_scores[images, points], best_labels[images, points]
    return suppress_found(len(scores), images, boxes_xyxy[images, points], values, labels, iou, max_det)
