"""`--config` with the settings file of another project's run."""

from pathlib import Path

import yaml

from commands import TINY, Command

ARGS = {
    "task": "detect", "mode": "train", "model": "yolo11n.yaml", "epochs": 1, "batch": 4, "imgsz": 64, "workers": 0,
    "device": None, "save_period": -1, "optimizer": "auto", "lr0": 0.01, "copy_paste": 0.0, "nbs": 64, "pose": 12.0,
    "project": None, "name": "train", "save_dir": "runs/detect/train",
}  # fmt: skip


def test_args_yaml_trains_and_what_it_has_more_is_named(data: Path, yoloyard: Command) -> None:
    file = Path("args.yaml")
    file.write_text(yaml.safe_dump(ARGS | {"data": str(data)}))
    code, out, err = yoloyard("train", "--config", file, *TINY[6:])
    assert (code, err) == (0, "")
    assert "recipe as published" in out
    config = yaml.safe_load(Path("runs/line/config.yaml").read_text())
    assert (config["model"], config["imgsz"], config["optimizer"]) == ("yolo11n", 64, "AdamW")

    file.write_text(yaml.safe_dump(ARGS | {"data": str(data), "copy_paste": 0.3}))
    code, _, err = yoloyard("train", "--config", file)
    assert code == 2
    assert "args.yaml is from ultralytics and has what yoloyard has not: copy_paste: 0.3 (without it: 0)" in err
