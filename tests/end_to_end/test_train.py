"""From a folder of images to weights, figures and a page, through the command line."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

import yoloyard as package
from commands import TINY, TINY_NETWORK, Command
from yoloyard.models.weights import load_model, read_weights
from yoloyard.training.listeners.events import EpochEnded, StepFinished
from yoloyard.training.listeners.results import read_records


def image(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return pixels


def test_a_run_leaves_everything_and_its_last_figures_are_those_of_val(
    trained: Path, run_folder: Path, data: Path, yoloyard: Command
) -> None:
    said = (trained / "said").read_text()
    assert "recipe for small sets" in said
    assert "mAP50-95" in said
    records = read_records(run_folder)
    assert [record["epoch"] for record in records] == [1, 2]
    assert {"train/box", "train/cls", "train/dfl", "val/map50_95", "val/map_small", "lr/bias"} <= records[0].keys()
    assert all(record["threads"] == torch.get_num_threads() for record in records)
    assert (run_folder / "results.csv").read_text().startswith("epoch,train/box,")
    assert json.loads((run_folder / "environment.json").read_text())["precision"] == "float32"
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["model"] == TINY_NETWORK
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {"last", "previous"}
    page = (run_folder / "report.html").read_text()
    assert "tiny_network.py:Tiny" in page
    assert "missing_screw" in page
    assert page.count("<svg") > 10
    assert "Box centres" in page

    _, metadata = read_weights(run_folder / "weights" / "last.safetensors")
    assert (metadata["epoch"], metadata["imgsz"], metadata["licence"]) == (2, 64, None)
    [step] = metadata["history"]
    assert (step["what"], step["file"], step["data"]) == ("trained", None, "line/data.yaml")
    last = {name.removeprefix("val/"): value for name, value in records[-1].items() if name.startswith("val/")}
    assert metadata["metrics"] == last
    code, _, err = yoloyard("val", "--weights", run_folder / "weights" / "last.safetensors", "--data", data)
    assert (code, err) == (0, "")
    assert json.loads(Path("runs/val/metrics.json").read_text()) == last


def test_weights_find_things_in_images_folders_videos_and_from_python(
    run_folder: Path, data: Path, yoloyard: Command
) -> None:
    weights = run_folder / "weights" / "best.safetensors"
    images = data.parent / "images" / "val"
    first = sorted(images.iterdir())[0]
    video = Path("clip.avi")
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 5, (96, 96))
    for _ in range(3):
        writer.write(image(first))
    writer.release()
    code, out, err = yoloyard(
        "predict", "--weights", weights, images, f"{images}/*.jpg", video, "--conf", 0.0001, "--save-txt", "--save-json"
    )
    assert (code, err) == (0, "")
    assert "15 images; results in runs/predict" in out
    assert Path(f"runs/predict/{first.stem}-2.jpg").exists()  # the same name from the glob
    rows = json.loads(Path("runs/predict/predictions.json").read_text())
    assert {"image", "box_xyxy", "score", "label", "name"} == rows[0].keys()
    assert image(Path("runs/predict") / first.name).shape == (96, 96, 3)
    assert Path("runs/predict/clip.mp4").stat().st_size > 0
    label, *numbers = Path(f"runs/predict/labels/{first.stem}.txt").read_text().splitlines()[0].split()
    assert int(label) < 5
    assert len(numbers) == 5

    model = package.load(weights, conf=0.0001)
    pixels = cv2.cvtColor(image(first), cv2.COLOR_BGR2RGB)
    by_array, [by_path] = model(pixels), model([first])
    assert len(by_array) > 0
    assert np.array_equal(by_array.boxes.numpy(), by_path.boxes.numpy())
    assert by_array.boxes.min() >= 0
    assert by_array.boxes.max() <= 96


def test_training_starts_from_weights_with_other_classes(run_folder: Path, data: Path, yoloyard: Command) -> None:
    words = yaml.safe_load(data.read_text())
    words["names"] = ["scratch", "dent", "stain", "missing_screw", "crack", "glue"]
    other = data.with_name("other.yaml")
    other.write_text(yaml.safe_dump(words))
    weights = run_folder / "weights" / "best.safetensors"
    code, out, err = yoloyard("train", "--data", other, "--weights", weights, "--epochs", 1, "--freeze", 2, *TINY[2:])
    assert (code, err) == (0, "")
    assert "took" in out
    assert "new: head" in out
    before, _ = load_model(weights)
    after, metadata = load_model(Path("runs/other/weights/last.safetensors"))
    assert (metadata["model"], after.num_classes) == ("tiny_network.py:Tiny", 6)
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    frozen = {name for name in old if name.startswith(("stem.", "fine."))}
    assert frozen
    assert {name for name in old if "class_branches" not in name and (old[name] == new[name]).all()} >= frozen
    assert not (old["coarse.conv.weight"] == new["coarse.conv.weight"]).all()


def test_amp_cached_images_adam_and_words_without_dashes(data: Path, yoloyard: Command) -> None:
    code, _, err = yoloyard(
        "train", "model=yolov8n", f"data={data}", "epochs=1", "img=64", "batch_size=4", "cache=ram", "amp=True",
        "optimizer=AdamW", "cos_lr=True", "mixup=0.5", "degrees=10", "name=words", "workers=2", "save_period=1",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert Path("runs/words/checkpoints/epoch-0001/state.json").exists()
    assert list(Path("runs/words/tensorboard").iterdir())


def test_settings_file_and_python(data: Path) -> None:
    events: list[object] = []
    images: list[int] = []

    def look(event: object) -> None:
        if isinstance(event, StepFinished):
            batch = event.images()
            images.append(len(batch.images) if batch else 0)
        elif isinstance(event, EpochEnded):
            validation = event.validation()
            images.append(len(validation.detections) if validation else 0)

    settings = Path("settings.yaml")
    settings.write_text(f"model: {TINY_NETWORK}\nepochs: 1\nimgsz: 64\nbatch: 4\namp: false\n")
    from yoloyard.config.overrides import read_overrides

    result = package.train(
        data=str(data), on_event=[events.append, look], tensorboard=False, **read_overrides(settings)
    )
    names = [type(event).__name__ for event in events]
    assert (names.count("CheckpointWritten"), names.count("EpochEnded")) == (1, 1)
    assert (names[0], names[-1]) == ("RunStarted", "RunFinished")
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert [event.batch for event in steps] == [1, 2, 3, 4]
    assert images == [4, 4, 4, 4, 6]
    ended = [event for event in events if isinstance(event, EpochEnded)]
    # Who keeps all events keeps no batch and no detections.
    assert [event.images() for event in steps] + [event.validation() for event in ended] == [None] * 5
    assert result.weights.exists()
    assert result.metrics.figures()["map50_95"] >= 0


def test_info(yoloyard: Command, run_folder: Path) -> None:
    code, out, _ = yoloyard("info", "yolo11n")
    assert code == 0
    assert "2,624,080 parameters, 6.5 GFLOPs" in out
    assert "strides 8, 16, 32" in out
    _, out, _ = yoloyard("info", run_folder / "weights" / "best.safetensors")
    assert "scratch" in out
