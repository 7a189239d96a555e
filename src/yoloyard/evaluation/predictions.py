"""Predictions as COCO results JSON, which other evaluation tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from yoloyard.data.index import Index
from yoloyard.files import write_whole_text
from yoloyard.structures import Detections


def save_json(path: Path, index: Index, predictions: Mapping[int, Detections]) -> None:
    """Write one row a detection: image_id, file_name, category_id, bbox (x, y, width, height in pixels), score.

    `image_id` is the position in `index`, `category_id` the class number of the data set; `file_name` tells images
    apart for tools that number them otherwise. Raises UserError if the file can't be written.
    """
    rows = []
    for image_id in sorted(predictions):
        found = predictions[image_id]
        boxes_xywh = found.boxes.double().cpu().clone()
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        columns = (boxes_xywh.tolist(), found.scores.tolist(), found.labels.tolist())
        for box, score, label in zip(*columns, strict=True):
            rows.append(
                {
                    "image_id": image_id,
                    "file_name": index.paths[image_id].name,
                    "category_id": label,
                    "bbox": [round(value, 3) for value in box],
                    "score": round(score, 6),
                }
            )
    write_whole_text(path, json.dumps(rows, separators=(",", ":")))
