"""Predicts large images with a weights file, as `yoloyard.load` does or in SAHI's slices: the sides of large_images.py.

SAHI cuts the images and merges what is found; the network and its settings are the same. Its default, GREEDYNMM, merges
boxes by their intersection over the smaller one. For low scores it takes NMS by IoU instead, so both are measured.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import yoloyard

CONF, IOU = 0.01, 0.6
METRICS = {"GREEDYNMM": "IOS", "NMS": "IOU"}  # of SAHI's merging
OVERLAP = 0.2  # of slices, as of tiles by default
Found = tuple[list[list[float]], list[float], list[int]]  # boxes xyxy, scores, labels


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict images and write boxes, seconds and memory as JSON.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--max-det", type=int, required=True)
    parser.add_argument("--slices", type=int, default=0, help="predict in SAHI's slices of so many pixels")
    parser.add_argument("--merging", choices=METRICS, default="GREEDYNMM", help="what SAHI does with boxes of slices")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"device": "cpu", "conf": CONF, "iou": IOU, "max_det": arguments.max_det}
    if arguments.slices:
        predict = in_slices(
            yoloyard.load(arguments.weights, tile="off", **settings), arguments.slices, arguments.merging
        )
    else:
        predict = as_loaded(yoloyard.load(arguments.weights, **settings))
    found, seconds = [], []
    for path in arguments.images:
        began = time.process_time()
        found.append(predict(path))
        seconds.append(time.process_time() - began)
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    results = {"found": found, "seconds": seconds, "gigabytes": gigabytes}
    arguments.out.write_text(json.dumps(results), encoding="utf-8")


def as_loaded(model: Any) -> Callable[[str], Found]:
    """Detections of an image file by `yoloyard.load`."""

    def predict(path: str) -> Found:
        detections = model(path)
        return detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist()

    return predict


def in_slices(model: Any, size: int, merging: str) -> Callable[[str], Found]:
    """Detections of an image file in SAHI's slices of `size` x `size` pixels, which a model without tiles sees."""
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction

    channels = model.metadata.get("channels", 3)

    class Yoloyard(DetectionModel):
        """Our network, as SAHI calls it."""

        def load_model(self) -> None:
            self.model = model

        def perform_inference(self, image: np.ndarray) -> None:
            self._original_predictions = model(np.ascontiguousarray(image[..., :channels]))

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            found = self._original_predictions
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=box,
                        category_id=label,
                        category_name=model.names[label],
                        score=score,
                        shift_amount=shift_amount_list[0],
                        full_shape=full_shape_list[0] if full_shape_list else None,
                    )
                    for box, score, label in zip(
                        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
                    )
                ]
            ]

    network = Yoloyard(confidence_threshold=CONF, device="cpu")

    def predict(path: str) -> Found:
        result = get_sliced_prediction(
            path,
            network,
            slice_height=size,
            slice_width=size,
            overlap_height_ratio=OVERLAP,
            overlap_width_ratio=OVERLAP,
            perform_standard_pred=False,
            postprocess_type=merging,
            postprocess_match_metric=METRICS[merging],
            force_postprocess_type=True,
            verbose=0,
        )
        objects = result.object_prediction_list
        return (
            [each.bbox.to_xyxy() for each in objects],
            [float(each.score.value) for each in objects],
            [int(each.category.id) for each in objects],
        )

    return predict


if __name__ == "__main__":
    main()
