"""Training by the reference's public API until its first step begins."""

import os
import sys

from ultralytics import YOLO, settings


def stop(_: object) -> None:
    """Stands in for the first step."""
    os._exit(0)


if __name__ == "__main__":
    settings.update({"sync": False})
    model = YOLO("yolo11n.yaml")
    model.add_callback("on_train_batch_start", stop)
    model.train(
        data=sys.argv[1],
        imgsz=320,
        batch=8,
        pretrained=False,
        project=os.path.abspath(os.path.join("runs", "bench", "startup", "runs")),
        name="run",
        exist_ok=True,
    )
