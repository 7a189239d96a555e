"""The ultralytics side of trees.py: train by its public API, predict, write JSON.

Run by the interpreter of the reference's own environment, as a process of its own; nothing here imports yoloyard.
Prints nothing that trees.py reads: what it found stands in `result.json` and `predictions-*.json` in --out.
"""

import json
import time
from typing import Any

import torch
import ultralytics
from reference_arguments import argument_parser
from ultralytics import YOLO, settings


def main() -> None:
    parser = argument_parser("Train and predict with ultralytics.")
    parser.add_argument("--nbs", type=int, help="nominal batch, if not the reference's default")
    arguments = parser.parse_args()
    settings.update({"sync": False})
    out = arguments.out.resolve()
    history: list[dict[str, Any]] = []
    began = 0.0

    def set_threads(_: object) -> None:
        torch.set_num_threads(arguments.threads)  # the reference chooses its own count when it selects the device

    def note_epoch(trainer: Any) -> None:
        if trainer.epoch >= arguments.epochs:
            return  # the validation of the best weights after the last epoch
        history.append(
            {
                "epoch": trainer.epoch + 1,
                "seconds": time.perf_counter() - began,
                "threads": torch.get_num_threads(),
                "metrics": {name: float(value) for name, value in trainer.metrics.items()},
            }
        )
        print(json.dumps(history[-1]), flush=True)

    model = YOLO(f"{arguments.model}.yaml")
    for event in ("on_pretrain_routine_end", "on_train_start", "on_train_epoch_start", "on_val_start"):
        model.add_callback(event, set_threads)
    model.add_callback("on_fit_epoch_end", note_epoch)
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    changed = {} if arguments.nbs is None else {"nbs": arguments.nbs}
    model.train(
        data=str(arguments.data.resolve()),
        epochs=arguments.epochs,
        batch=arguments.batch,
        imgsz=arguments.imgsz,
        seed=arguments.seed,
        device="cpu",
        pretrained=False,
        plots=False,
        verbose=False,
        project=str(out),
        name="run",
        exist_ok=True,
        **changed,
    )
    seconds = time.perf_counter() - began

    data = arguments.data.resolve().parent
    images = sorted((data / "images" / "val").iterdir())
    for kind in ("best", "last"):
        found = {}
        trained = YOLO(out / "run" / "weights" / f"{kind}.pt")
        for image in images:
            torch.set_num_threads(arguments.threads)
            boxes = trained.predict(
                str(image),
                conf=arguments.conf,
                iou=arguments.iou,
                max_det=arguments.max_det,
                imgsz=arguments.imgsz,
                device="cpu",
                verbose=False,
            )[0].boxes
            found[image.name] = {
                "boxes_xyxy": boxes.xyxy.tolist(),
                "scores": boxes.conf.tolist(),
                "labels": [int(label) for label in boxes.cls.tolist()],
            }
        (out / f"predictions-{kind}.json").write_text(json.dumps(found), encoding="utf-8")
    result = {
        "seconds": seconds,
        "versions": {"ultralytics": ultralytics.__version__, "torch": torch.__version__},
        "map50": [epoch["metrics"]["metrics/mAP50(B)"] for epoch in history],
        "history": history,
    }
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
