"""The yolov5 side of trees.py: train the package of that name by its public API, predict, write JSON.

Run by the interpreter of the reference's own environment, as a process of its own; nothing here imports yoloyard.
Prints nothing that trees.py reads: what it found stands in `result.json` and `predictions-*.json` in --out.
"""

import csv
import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its weight files are pickles of whole networks

import matplotlib
import torch
import yolov5
import yolov5.train
from reference_arguments import argument_parser


def main() -> None:
    arguments = argument_parser("Train and predict with yolov5.").parse_args()
    out = arguments.out.resolve()
    folder = arguments.data.resolve().parent
    data = out / "data.yaml"  # the reference looks for relative paths elsewhere than beside the file
    data.write_text(f"path: {folder}\n{arguments.data.read_text(encoding='utf-8')}", encoding="utf-8")
    # Without a font of this name it begins with a download; no image is drawn here.
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    shutil.copy(font, Path(os.environ["YOLOV5_CONFIG_DIR"]) / "Arial.ttf")
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    yolov5.train.run(
        weights="",
        cfg=f"{arguments.model}.yaml",
        data=str(data),
        epochs=arguments.epochs,
        batch_size=arguments.batch,
        imgsz=arguments.imgsz,
        seed=arguments.seed,
        device="cpu",
        noplots=True,
        project=str(out),
        name="run",
        exist_ok=True,
    )
    seconds = time.perf_counter() - began
    print(f"threads at the end: {torch.get_num_threads()}", flush=True)

    images = sorted((folder / "images" / "val").iterdir())
    for kind in ("best", "last"):
        found = {}
        trained = yolov5.load(str(out / "run" / "weights" / f"{kind}.pt"), device="cpu")
        trained.conf, trained.iou, trained.max_det = arguments.conf, arguments.iou, arguments.max_det
        for image in images:
            rows = trained(str(image), size=arguments.imgsz).xyxy[0]  # left, top, right, bottom, score, class
            found[image.name] = {
                "boxes_xyxy": rows[:, :4].tolist(),
                "scores": rows[:, 4].tolist(),
                "labels": [int(label) for label in rows[:, 5].tolist()],
            }
        (out / f"predictions-{kind}.json").write_text(json.dumps(found), encoding="utf-8")
    with (out / "run" / "results.csv").open(encoding="utf-8", newline="") as file:
        history = [{name.strip(): float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    result = {
        "seconds": seconds,
        "versions": {"yolov5": version("yolov5"), "torch": torch.__version__},
        "map50": [epoch["metrics/mAP_0.5"] for epoch in history],
        "history": history,
    }
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
