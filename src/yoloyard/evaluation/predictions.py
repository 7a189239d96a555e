"""Predictions as COCO results JSON, which other evaluation tools read."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yoloyard.common.files import write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index
from yoloyard.evaluation.metrics.matching import gather_found


def save_json(path: Path, index: Index, predictions: Mapping[int, Detections]) -> None:
    """Write one row a detection: image_id, file_name, category_id, bbox (x, y, width, height in pixels), score.

    `image_id`, `category_id` and `file_name` are those of the user's COCO JSON if the split is one; otherwise the
    position in `index`, the class number and the path below the folder of the split's images. Rows of an image are in
    the order in which `evaluate` counts equal scores. Raises UserError if the file can't be written.
    """
    found, file_names = gather_found(predictions, len(index)), list(index.file_names)
    boxes_xywh = np.concatenate((found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]), axis=1)
    rows = [
        {
            "image_id": int(index.source_ids[image]),
            "file_name": file_names[image],
            "category_id": int(index.category_ids[label]),
            "bbox": [round(value, 5) for value in box],
            "score": round(score, 9),  # with fewer digits some would be equal, and so in another order
        }
        for image, label, box, score in zip(
            found.images, found.labels, boxes_xywh.tolist(), found.scores.tolist(), strict=True
        )
    ]
    write_whole_text(path, json.dumps(rows, separators=(",", ":")))
