"""`yoloyard train` until its first step begins."""

import os
import sys

from yoloyard.cli.main import main


def stop(*_: object) -> None:
    """Stands in for the first step."""
    os._exit(0)


if __name__ == "__main__":
    from yoloyard.training.engine.engine import Engine

    Engine.step = stop  # type: ignore[assignment, method-assign]
    words = ["train", "--data", sys.argv[1], "--model", "yolo11n", "--imgsz", "320", "--batch", "8"]
    main([*words, "--project", os.path.join("runs", "bench", "startup", "runs"), *sys.argv[2:]])
