"""`--suppression`: which of a network's two paths judges, finds and is measured, and what is said of only one."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import yoloyard as package
from commands import TINY, Command, exit_code
from exported_files import document, write_onnx
from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import read_overrides, with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.evaluation.report import plots
from yoloyard.models.weights import read_weights
from yoloyard.serving.metrics import Metrics
from yoloyard.serving.served import Served
from yoloyard.training.listeners.results import read_records

BOTH_PATHS = f"{Path(__file__).parents[1] / 'tiny_both_paths.py'}:BothPaths"
UNTRAINED = ["--epochs", 1, "--optimizer", "SGD", "--lr0", 0, "--warmup-epochs", 0, "--max-det", 400]
NEEDS_IT = "these weights have no branches that find each object once: --suppression on, or train with --end2end\n"


@pytest.fixture(scope="module")
def judged(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is judged without suppression in `runs/line`."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "how.yaml").write_text("suppression: off\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLOYARD_CACHE", str(folder / "cache"))
        patch.setattr(plots, "figure_svg", lambda figure: "<svg></svg>")
        patch.chdir(folder)
        words = ["--config", "how.yaml", "--data", tiny_set, "--model", BOTH_PATHS, *TINY[2:], *UNTRAINED]
        assert exit_code("train", *words) == 0
    return folder


@pytest.fixture
def weights(judged: Path) -> Path:
    return judged / "runs" / "line" / "weights" / "best.safetensors"


def by_path(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row.pop("suppression"): row for row in found["paths"]}


def test_a_run_is_judged_by_its_path_and_its_files_use_it(judged: Path, weights: Path) -> None:
    assert read_records(judged / "runs" / "line")[0]["val/recall"] > 0  # with suppression there is nothing
    metadata = read_weights(weights)[1]
    assert metadata["evaluation"]["suppression"] == "off"
    assert metadata["showing"]["iou"] == 1
    assert package.load(weights).settings.suppression == "off"


def test_the_report_of_a_run_has_both_paths(judged: Path) -> None:
    report = (judged / "runs" / "line" / "report.html").read_text()
    assert "The other figures of this page are those without suppression" in report
    assert report.index("<th>without suppression</th>") < report.index("<th>with suppression</th>")


def test_val_measures_both_paths_at_one_confidence(weights: Path, data: Path, yoloyard: Command) -> None:
    code, out, _ = yoloyard("val", "--weights", weights, "--data", data, "--json")
    document = json.loads(out)
    assert code == 0
    assert [row["suppression"] for row in document["paths"]] == ["off", "on"]
    rows = by_path(document)
    assert rows["off"]["map50_95"] == document["figures"]["map50_95"]
    assert document["figures"] == read_weights(weights)[1]["metrics"]
    assert rows["off"]["conf"] == rows["on"]["conf"] == read_weights(weights)[1]["showing"]["conf"]
    assert rows["off"]["recall"] > 0
    assert rows["off"]["duplicates_per_image"] > 0
    assert 0.3 < rows["off"]["median_score"] < 0.7
    assert rows["on"] == {**dict.fromkeys(rows["on"], 0), "conf": rows["on"]["conf"]}

    code, out, _ = yoloyard("val", "--weights", weights, "--data", data, "--suppression", "on", "--iou", 0.6)
    assert code == 0
    assert "│ on (used)   │ 0.0000" in out
    assert f"│ off         │ {rows['off']['map50_95']:.4f}" in out
    assert json.loads(Path("runs/val-2/metrics.json").read_text())["map50_95"] == 0
    assert "The other figures of this page are those with suppression" in Path("runs/val-2/report.html").read_text()


@pytest.mark.parametrize("value", [False, "off", "false"])
def test_predictions_go_the_chosen_path(weights: Path, data: Path, value: Any) -> None:
    image = data.parent / "images" / "val" / "0000.jpg"
    without = package.load(weights, suppression=value, conf=0.3)
    assert without.settings.iou == 1
    assert len(without(image).boxes) > 64
    assert len(package.load(weights, suppression=True, conf=0.3)(image).boxes) == 0


def test_predict_says_how_boxes_are_shown(weights: Path, data: Path, yoloyard: Command) -> None:
    words = ["predict", "--weights", weights, data.parent / "images" / "val" / "0000.jpg", "--conf", 0.9]
    assert "shown: confidence above 0.9, without suppression\n" in yoloyard(*words)[1]
    assert "shown: confidence above 0.9, suppression at IoU 0.5\n" in yoloyard(*words, "--suppression", "on")[1]


def test_info_names_the_paths(weights: Path, trained: Path, yoloyard: Command) -> None:
    assert "two paths: with suppression, without suppression (used)\n" in yoloyard("info", weights)[1]
    document = json.loads(yoloyard("info", weights, "--json")[1])
    assert document["suppression"] == {"paths": ["on", "off"], "used": "off"}
    assert "paths" not in yoloyard("info", trained / "runs" / "line" / "weights" / "best.safetensors")[1]


def test_an_overlap_means_nothing_without_suppression(weights: Path, data: Path, yoloyard: Command) -> None:
    code, _, err = yoloyard("predict", "--weights", weights, data.parent / "images", "--iou", 0.5)
    assert code == 2
    assert err.endswith(f"{weights} is used without suppression: leave out --iou, or say --suppression on\n")


def test_a_network_with_one_path_says_so(trained: Path, data: Path, yoloyard: Command) -> None:
    one = trained / "runs" / "line" / "weights" / "best.safetensors"
    for command in (["val", "--data", data], ["predict", data.parent / "images"]):
        assert yoloyard(*command, "--weights", one, "--suppression", "off")[::2] == (2, f"yoloyard: {one}: {NEEDS_IT}")
    out = yoloyard("val", "--data", data, "--weights", one)[1]
    assert "\nduplicates per image: 0.000 (shown: confidence above 0" in out
    assert "With suppression and without" not in Path("runs/val/report.html").read_text()


@pytest.mark.parametrize("model", ["yolov5n", TINY[1]])
def test_a_run_without_such_a_path_ends_before_it_begins(data: Path, yoloyard: Command, model: str) -> None:
    words = ["--data", data, "--model", model, *TINY[2:], "--suppression", "off"]
    assert yoloyard("train", *words)[::2] == (2, f"yoloyard: {NEEDS_IT}")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["train", "val", "predict"])
def test_there_are_on_and_off_alone(data: Path, weights: Path, yoloyard: Command, command: str) -> None:
    code, _, err = yoloyard(command, "--weights", weights, "--data", data, "--suppression", "maybe")
    assert code == 2
    assert command == "predict" or "'suppression' must be on or off, not 'maybe'" in err


def test_a_server_goes_the_chosen_path(weights: Path, trained: Path, yoloyard: Command) -> None:
    with ThreadPoolExecutor(1) as decoders:
        for chosen, used in ((None, "off"), ("on", "on")):
            served = Served("best", str(weights), 1, Metrics(), decoders, chosen)
            assert served.model.settings.suppression == used
    one = trained / "runs" / "line" / "weights" / "best.safetensors"
    words = ["serve", one, "--port", 0, "--suppression", "off"]
    assert yoloyard(*words)[::2] == (2, f"yoloyard: {one}: {NEEDS_IT}")


def test_an_exported_file_has_one_path(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "a.onnx", document())
    assert package.load(file, suppression="on").settings.suppression == "on"
    with pytest.raises(UsageError, match=r"a\.onnx is for --suppression on alone: leave it out, or export the weights"):
        package.load(file, suppression="off")
    file = write_onnx(tmp_path / "b.onnx", document(needs_suppression=False))
    assert package.load(file).settings.suppression == "off"
    with pytest.raises(UsageError, match=r"b\.onnx is for --suppression off alone"):
        package.load(file, suppression=True)


@pytest.mark.parametrize("text", ["on", "On", "'on'", "true", "off", "OFF", "false"])
def test_a_settings_file_may_say_it_as_yaml_does(tmp_path: Path, text: str) -> None:
    (tmp_path / "how.yaml").write_text(f"suppression: {text}\n")
    overrides = read_overrides(tmp_path / "how.yaml")
    expected = "on" if text.strip("'").lower() in ("on", "true") else "off"
    assert with_overrides(TrainConfig(), overrides).evaluation.suppression == expected


@pytest.mark.parametrize("value", ["maybe", "", 1, None, ["on"]])
def test_nothing_else_is_understood(value: Any) -> None:
    with pytest.raises(UsageError, match="'suppression' must be "):
        with_overrides(TrainConfig(), {"suppression": value})
