"""Weight files of other projects through the command line: imported, shown, evaluated, trained from."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from commands import Command
from foreign import published_network
from yoloyard.common.digests import file_sha256
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.models import registry
from yoloyard.models.weights import read_weights

SMALL = ["--imgsz", 64, "--batch", 4, "--no-amp", "--no-tensorboard", "--device", "cpu"]


@pytest.fixture
def checkpoint(data: Path, foreign_classes: None) -> Path:
    """A checkpoint of yolov5n with the classes of the tiny set."""
    torch.manual_seed(0)
    network = published_network(registry.build("yolov5n", num_classes=len(read_data_yaml(data).names)))
    network.names = list(read_data_yaml(data).names)  # type: ignore[assignment]
    torch.save({"model": network.half(), "ema": None, "opt": {"imgsz": 64}, "date": "2023"}, "official.pt")
    return Path("official.pt")


@pytest.mark.parametrize("native", [True, False])
def test_a_float32_file_says_what_amp_would_do(
    checkpoint: Path, data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr("yoloyard.common.device.cpu_has_bfloat16", lambda: native)
    for flags, is_said in (([], native), (["--no-amp"], False), (["--amp"], False)):
        code, out, err = yoloyard("val", "--weights", checkpoint, "--data", data, "--imgsz", 32, *flags)
        assert (code, err) == (0, "")
        assert ("--amp computes in bfloat16" in out) == is_said


def test_an_imported_file_is_as_good_as_the_original(checkpoint: Path, data: Path, yoloyard: Command) -> None:
    code, out, err = yoloyard("import", checkpoint, "-o", "ours.safetensors")
    assert (code, err) == (0, "")
    assert "yolov5n" in out
    assert "AGPL-3.0" in out
    assert read_weights(Path("ours.safetensors"))[1] == read_weights(checkpoint)[1]
    for weights in (checkpoint, "ours.safetensors"):
        code, _, err = yoloyard("val", "--weights", weights, "--data", data, "--name", "figures")
        assert (code, err) == (0, "")
    figures = [json.loads(Path(f"runs/figures{number}/metrics.json").read_text()) for number in ("", "-2")]
    assert figures[0] == figures[1]
    assert yoloyard("predict", "--weights", checkpoint, data.parent / "images" / "val")[0] == 0


@pytest.mark.usefixtures("foreign_classes")
def test_info_shows_a_file_whose_images_have_one_channel(yoloyard: Command, tmp_path: Path) -> None:
    torch.save({"model": published_network(registry.build("yolov8n", num_classes=2, channels=1))}, tmp_path / "one.pt")
    code, out, err = yoloyard("info", tmp_path / "one.pt")
    assert (code, err) == (0, "")
    assert "model: yolov8n" in out


def test_info_shows_what_a_file_asks_for(checkpoint: Path, yoloyard: Command) -> None:
    code, out, _ = yoloyard("info", checkpoint)
    assert code == 0
    assert "none of them is run" in out
    assert "ultralytics.nn.tasks.DetectionModel" in out
    assert "torch._utils._rebuild_tensor_v2" in out
    assert "licence: AGPL-3.0" in out


def test_a_hostile_name_cannot_hide_itself_or_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yoloyard: Command
) -> None:
    """Neither by markup of the console nor by what moves a terminal's cursor."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("gift.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"(cposix\nsystem\nc[/x]\x1b[2K[conceal]\nname\nl.")
    code, out, err = yoloyard("info", "gift.pt")
    assert code == 1
    assert "posix.system" in out
    assert r"[/x]\x1b[2K[conceal].name" in out
    assert "\x1b" not in out + err


def test_the_licence_goes_with_everything_that_is_trained_from_it(
    checkpoint: Path, data: Path, yoloyard: Command
) -> None:
    code, out, _ = yoloyard("train", "--weights", checkpoint, "--data", data, "--epochs", 1, *SMALL)
    assert code == 0
    assert out.count("weights under AGPL-3.0") == 1
    assert "took 349 of 349 tensors" in out
    trained = Path("runs/line/weights/best.safetensors")
    assert read_weights(trained)[1]["licence"] == "AGPL-3.0"
    other = ["--weights", trained, "--data", data, "--epochs", 1, "--name", "again"]
    assert yoloyard("train", *other, *SMALL)[0] == 0
    again = read_weights(Path("runs/again/weights/last.safetensors"))[1]
    assert again["licence"] == "AGPL-3.0"
    steps = [(each["what"], each["file"], each["sha256"], each.get("data")) for each in again["history"]]
    assert steps == [
        ("imported", "official.pt", file_sha256(checkpoint), None),
        ("trained", "official.pt", file_sha256(checkpoint), "line/data.yaml"),
        ("trained", "best.safetensors", file_sha256(trained), "line/data.yaml"),
    ]
    code, out, _ = yoloyard("licence", "runs/again/weights/last.safetensors")
    assert code == 0
    assert "weights under AGPL-3.0: a product that contains the result must be" in out


def test_a_file_that_is_no_checkpoint_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yoloyard: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.pt").write_bytes(b"not a checkpoint")
    code, _, err = yoloyard("import", "photo.pt")
    assert code == 1
    assert err == "yoloyard: photo.pt is no file of torch.save.\n"
    code, _, err = yoloyard("import", "missing.pt")
    assert code == 1
    assert "cannot read the weights missing.pt: No such file or directory." in err
