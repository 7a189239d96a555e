"""Predictions as COCO results JSON, which other evaluation tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from yoloyard.common.files import write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.data.index.index import Index


def save_json(path: Path, index: Index, predictions: Mapping[int, Detections]) -> None:
    """Write one row a detection: image_id, file_name, category_id, bbox (x, y, width, height in pixels), score.

    `image_id`, `category_id` and `file_name` are those of the user's COCO JSON if the split is one; otherwise the
    position in `index`, the class number and the path below the folder of the split's images. Rows of an image are in
    the order in which `evaluate` counts equal scores. Raises UserError if the file can't be written.
    """
    rows = []
    category_ids = index.category_ids.tolist()
    for image_id in sorted(predictions):
        found, file_name = predictions[image_id], index.file_names[image_id]
        boxes_xywh = found.boxes.double().cpu().clone()
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        columns = (boxes_xywh.tolist(), found.scores.tolist(), found.labels.tolist())
        for box, score, label in sorted(zip(*columns, strict=True), key=lambda row: (-row[1], row[2], row[0])):
            rows.append(
                {
                    "image_id": int(index.source_ids[image_id]),
                    "file_name": file_name,
                    "category_id": category_ids[label],
                    "bbox": [round(value, 5) for value in box],
                    "score": round(score, 9),  # fewer digits would make equal ones, and so another order
                }
            )
    write_whole_text(path, json.dumps(rows, separators=(",", ":")))
