"""`yoloyard.load` and `validate` from Python: what is handed over works or is refused with what to do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import yoloyard
from yoloyard.commands.val import class_order, validate
from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.models.weights import load_model, save_weights, transfer

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def save(path: Path, names: list[str], like: Path | None = None) -> Path:
    """Weights of random numbers, or those of `like` for the classes in another order."""
    torch.manual_seed(0)
    detector = registry.build("yolo11n", num_classes=len(names))
    if like is not None:
        trained, known = load_model(like)
        transfer(detector, trained.state_dict(), names, known["names"])
    metadata = {"model": "yolo11n", "model_arguments": {"num_classes": len(names)}, "names": names, "imgsz": 64}
    save_weights(path, detector.state_dict(), metadata)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "w.safetensors", ["a", "b"])


@pytest.mark.parametrize("device", ["cpu", "CPU", "cpu:0", torch.device("cpu"), None, "auto", "[cpu]", "", " "])
def test_a_device_may_be_named_in_several_ways(device: Any, weights: Path) -> None:
    assert yoloyard.load(weights, device).network.device == torch.device("cpu")


@pytest.mark.parametrize(
    "device", [1, 0, "cpu:1", "meta", "None", "²", "cuda:-1", -1, "99999999999", "gpu", "cpu:256", "mkldnn", "cuda:256"]
)
def test_what_is_no_device_here_is_refused_in_a_line(device: Any, weights: Path) -> None:
    if torch.accelerator.is_available() and device in (0, 1):
        pytest.skip("there is such a device")
    with pytest.raises(UsageError, match=r"say .*auto"):
        yoloyard.load(weights, device)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": None}, "a path, not None"),
        ({"weights": b"w.pt"}, "a path, not b'w.pt'"),
        ({"weights": ""}, "a path, not ''"),
        ({"weights": "a\0b"}, "'weights' must have no NUL byte"),
        ({"device": b"cpu"}, "'device' must be a text"),
        ({"imgsz": 0}, "'imgsz' must be at least 32"),
        ({"imgsz": 640.5}, "'imgsz' must be a whole number"),
        ({"conf": 2}, "'conf' must be at most 1"),
        ({"conf": "high"}, "'conf' must be a number"),
        ({"max_det": 1.5}, "'max_det' must be a whole number"),
        ({"confidence": 0.5}, "unknown setting 'confidence'; did you mean 'conf'"),
    ],
)
def test_wrong_settings_of_a_model_are_named(settings: dict[str, Any], message: str, weights: Path) -> None:
    with pytest.raises(UsageError, match=message):
        yoloyard.load(**({"weights": weights} | settings))


def test_a_model_takes_arrays_pil_images_paths_and_lists_of_them(weights: Path, tmp_path: Path) -> None:
    model = yoloyard.load(str(weights), "cpu", conf=0.0)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    expected = model(RGB)
    assert len(expected) > 0
    given = [RGB, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(RGB), torch.from_numpy(RGB)]
    for found in [*model(given), *model(iter(given)), *map(model, given)]:
        assert torch.equal(found.boxes, expected.boxes)
    assert model([]) == []
    meta, sparse = torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"), torch.from_numpy(RGB).to_sparse()
    empty, file = np.zeros((0, 10, 3), np.uint8), (tmp_path / "a.png").open("rb")
    for wrong in (None, b"abc", RGB / 255, [RGB, None], empty, meta, sparse, [sparse], "a\0b", file, [file]):
        with pytest.raises(UserError, match=r"an image (can't|must)"):
            model(wrong)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (40_000, 3, 3)])
def test_images_of_any_shape_are_looked_at(shape: tuple[int, ...], weights: Path) -> None:
    assert len(yoloyard.load(weights, "cpu", conf=0.0, max_det=5)(np.zeros(shape, np.uint8))) <= 5


def test_classes_in_another_order_are_matched_by_name(
    data: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    names = ["scratch", "dent", "stain", "missing_screw", "crack"]
    monkeypatch.setattr("yoloyard.evaluation.report.report.write_report", lambda *_, **__: None)
    found = {}
    moved = ["Crack", "dent ", "scratch", "missing_screw", "stain"]
    first = save(Path("first.safetensors"), names)
    for path in (first, save(Path("moved.safetensors"), moved, first)):
        folder = validate(path, data, conf=0.0, max_det=20, device="cpu", save_json=True).folder
        found[path.stem] = (json.loads((folder / "predictions.json").read_text()), " ".join(said))
    assert found["first"][0] == found["moved"][0]
    assert len({row["category_id"] for row in found["first"][0]}) > 1
    assert "matched by name" in found["moved"][1]
    assert "matched by name" not in found["first"][1]


@pytest.mark.parametrize(
    ("trained", "names", "order"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["A ", "b"], ["b", "a"], [1, 0]),
        (["cat", "dog"], ["猫", "狗"], [0, 1]),
        (["a", "a"], ["a", "a"], [0, 1]),
        (["a", "b", "c"], ["a", "b", "d"], [0, 1, 2]),
    ],
)
def test_the_order_of_classes(trained: list[str], names: list[str], order: list[int]) -> None:
    assert class_order(trained, names, "w and d") == order


@pytest.mark.parametrize(("trained", "names"), [(["a", "b", "c"], ["b", "a", "d"]), (["a", "b"], ["b", "c"])])
def test_names_that_moved_among_others_are_refused(trained: list[str], names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"w and d give the class '[ab]' the numbers . and ., and not all"):
        class_order(trained, names, "w and d")


@pytest.mark.parametrize("resume", [3, b"runs/line", ["runs/line"]])
def test_what_names_no_run_to_resume_is_refused(resume: Any) -> None:
    with pytest.raises(UsageError, match="resume must name a run folder, not"):
        yoloyard.train(resume=resume)


def test_resume_from_python_may_mean_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no run to resume in runs/"):
        yoloyard.train(resume=True)
    with pytest.raises(UsageError, match="say which data"):
        yoloyard.train(resume=False)


@pytest.mark.parametrize(
    ("function", "args", "named", "message"),
    [
        ("load", ["a.safetensors"], {"weights": "b.safetensors"}, "load: multiple values for argument 'weights'"),
        ("load", ["a.safetensors", "cpu", 64], {}, "load: too many positional arguments"),
        ("load", [], {}, "load: missing a required argument: 'weights'"),
        ("load", ["a.safetensors"], {"image_size": 64}, "unknown setting 'image_size'"),
        ("train", ["runs/line"], {"resume": True}, "train: multiple values for argument 'resume'"),
        ("train", [], {"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
    ],
)
def test_arguments_that_a_function_does_not_take_are_named(
    function: str, args: list[Any], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        getattr(yoloyard, function)(*args, **named)


def test_validate_takes_what_load_takes(weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yoloyard.evaluation.report.report.write_report", lambda *_, **__: None)
    monkeypatch.setenv("HOME", str(weights.parent))
    names = ["scratch", "dent", "stain", "missing_screw", "crack"]
    save(weights.parent / "five.safetensors", names)
    words: dict[str, Any] = {"imgsz": "64", "batch": np.int64(2), "device": torch.device("cpu"), "project": "~/results"}
    found = validate("~/five.safetensors", data, **words)
    assert found.folder == weights.parent / "results" / "val"


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": None},
        {"weights": b"x"},
        {"weights": ""},
        {"data": None},
        {"data": b"x"},
        {"data": ""},
        {"imgsz": 64.5},
        {"imgsz": (64, 64, 64)},
        {"batch": 0},
        {"batch": 0.7},
        {"workers": -1},
        {"workers": 0.5},
        {"conf": "x"},
        {"amp": "no"},
        {"device": b"cpu"},
        {"device": "gpu"},
        {"split": ["val"]},
        {"save_json": "no"},
        {"name": ["a"]},
        {"project": "a\0b"},
    ],
)
def test_wrong_values_of_validate_are_named(wrong: dict[str, Any], weights: Path, data: Path) -> None:
    words: dict[str, Any] = {"weights": weights, "data": data, "device": "cpu"}
    with pytest.raises(UsageError, match=r"must be|say which|unknown device|no NUL byte"):
        validate(**(words | wrong))


def test_train_takes_what_load_takes() -> None:
    words = {"device": torch.device("cpu"), "amp": np.bool_(False), "classes": np.array([0, 2]), "lr0": np.float64(0.5)}
    assert checked_overrides(TrainConfig, words) == {"device": "cpu", "amp": False, "classes": "0,2", "lr0": 0.5}
    assert checked_overrides(TrainConfig, {"device": None, "model": None, "weights": None}) == {}
    assert checked_overrides(TrainConfig, {"device": 0}) == {"device": "0"}
    with pytest.raises(UsageError, match="on_event must be a function of an event, not 3"):
        yoloyard.train(data="no.yaml", on_event=3)  # type: ignore[arg-type]
