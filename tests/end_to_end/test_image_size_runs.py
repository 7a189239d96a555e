"""Images fitted into a height and a width: a run of `--imgsz 60x150`, and what is done with its weights."""

import json
from pathlib import Path

import numpy as np
import pytest

import yoloyard as package
from commands import TINY, Command
from squares import write_squares
from yoloyard.common.errors import UserError
from yoloyard.config.overrides import checked_overrides, read_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.models.weights import read_weights

WORDS = [word for word in TINY if word not in ("--imgsz", "64")]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Eight strips of 128 x 320 pixels with two bright squares each; the data.yaml."""
    random = np.random.default_rng(0)
    centres = [[(int(random.integers(40, 90)), 60), (60, 240)] for _ in range(8)]
    return write_squares(tmp_path / "wide", (128, 320), 40, centres)


@pytest.mark.slow
def test_a_run_of_a_height_and_a_width(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yoloyard: Command
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "size.yaml").write_text("imgsz: 60x150\n")
    code, out, err = yoloyard("train", "--config", "size.yaml", "--data", wide, "--epochs", 1, "--multi-scale", *WORDS)
    assert code == 0, err
    assert out.count("imgsz 60x150 is not a multiple of the stride 32: 64x160 is used") == 1

    run = Path("runs/wide")
    best = run / "weights" / "best.safetensors"
    assert read_weights(best)[1]["imgsz"] == [64, 160]
    assert checked_overrides(TrainConfig, read_overrides(run / "config.yaml"))["imgsz"] == (64, 160)
    assert "64x160 pixels" in (run / "report.html").read_text()
    assert "64x160" in yoloyard("runs", "show", run)[1]

    # A run that goes on keeps its size.
    code, _, err = yoloyard("train", "--resume", run, "--epochs", 2, "--imgsz", "64x192")
    assert (code, "a resumed run can't change imgsz" in err) == (2, True)
    assert yoloyard("train", "--resume", run, "--epochs", 2, "--imgsz", "60x150")[0] == 0

    code, out, err = yoloyard("val", "--weights", best, "--data", wide, "--json")
    assert code == 0, err
    figures, of_training = json.loads(out)["figures"], read_weights(best)[1]["metrics"]
    assert figures == pytest.approx({name: of_training[name] for name in figures}, abs=1e-6, nan_ok=True)
    model = package.load(best)
    assert (model.imgsz, model.input_shape(128, 320), model.input_shape(320, 128)) == ((64, 160), (64, 160), (64, 32))
    assert package.load(best, imgsz=(96, 300)).imgsz == (96, 320)
    code, out, err = yoloyard("export", best, "--to", "onnx", "--json")
    assert code == 0, err
    file = json.loads(out)["files"]["onnx"]
    exported = package.load(file)
    assert (exported.imgsz, exported.network.fixed_shape) == ((64, 160), (64, 160))
    image = wide.parent / "images" / "0.png"
    assert exported(image).boxes.numpy() == pytest.approx(model(image).boxes.numpy(), abs=0.1)
    with pytest.raises(UserError, match="alone: leave out --imgsz 160"):
        package.load(file, imgsz=160)
    assert yoloyard("predict", "--weights", best, "--imgsz", "96x320", wide.parent / "images")[0] == 0
