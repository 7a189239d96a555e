"""Runs on drawn images of one channel with 12 bits and of five channels, and what is done with their weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from tifffile import imwrite

import yoloyard
from commands import TINY, TINY_NETWORK, exit_code
from yoloyard.common.errors import UserError
from yoloyard.models.weights import load_model
from yoloyard.runtimes.document import read_document

KEYS: dict[str, dict[str, Any]] = {
    "deep": {"channels": 1, "window": [100, 4000]},
    "five": {"channels": 5},
}


def drawn(folder: Path, name: str) -> Path:
    """Eight images of 96 x 128 pixels with a bright square each; the data.yaml."""
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(8):
        y, x = random.integers(0, 96 - 32), random.integers(0, 128 - 32)
        if name == "deep":
            image = random.integers(200, 400, (96, 128)).astype(np.uint16)
            image[y : y + 32, x : x + 32] = 3500
            cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        else:
            five = random.integers(20, 60, (96, 128, 5)).astype(np.uint8)
            five[y : y + 32, x : x + 32, number % 5] = 220
            imwrite(folder / "images" / f"{number}.tif", five, photometric="minisblack", planarconfig="contig")
        line = f"0 {(x + 16) / 128} {(y + 16) / 96} {32 / 128} {32 / 96}\n"
        (folder / "labels" / f"{number}.txt").write_text(line)
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": ["square"]} | KEYS[name]))
    return data


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_other_images_than_rgb_of_8_bits_from_training_to_an_exported_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    data, channels = drawn(tmp_path / name, name), KEYS[name]["channels"]
    network = Path(TINY_NETWORK.removesuffix(":Tiny")).read_text().replace("Conv(3,", f"Conv({channels},")
    (tmp_path / "net.py").write_text(network)
    words = [word if word != TINY_NETWORK else "net.py:Tiny" for word in TINY if word != "--no-tensorboard"]
    words += ["--workers", "0", "--seed", "3"]
    assert exit_code("train", "--data", data, "--epochs", 1, "--mixup", 0.5, *words) == 0, capsys.readouterr().err
    run, pixels = Path("runs") / name, {"bits": 16 if name == "deep" else 8, "channels": channels}
    weights = run / "weights" / "best.safetensors"
    detector, metadata = load_model(weights)
    assert detector.image_channels == channels
    assert pixels.items() <= metadata["pixels"].items()
    if name == "deep":
        assert exit_code("train", "--resume", run, "--epochs", 2) == 0, capsys.readouterr().err
    else:
        assert exit_code("val", "--weights", weights, "--data", data, "--workers", 0) == 0, capsys.readouterr().err
    # which compares both, by the data or by drawings
    assert exit_code("export", weights, *(["--data", data] if name == "five" else [])) == 0, capsys.readouterr().err
    (onnx,) = Path("runs").glob("export*/*.onnx")
    document = read_document(onnx)
    assert document is not None
    assert document["pixels"] == metadata["pixels"]
    assert exit_code("predict", "--weights", weights, data.parent / "images", "--conf", 0.001, "--save-json") == 0
    (shown,) = Path("runs").glob("predict*/0.*")
    assert np.asarray(cv2.imread(str(shown), cv2.IMREAD_UNCHANGED)).shape == (96, 128, 3)

    path = next((data.parent / "images").glob("0.*"))
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if name == "deep" else yoloyard_pixels(path)
    model, exported = (yoloyard.load(each, conf=0.001, device="cpu") for each in (weights, onnx))
    found = model(path)
    assert len(found.boxes)
    assert torch.equal(model(values).boxes, found.boxes)
    fixed = exported(path)
    assert abs(float(fixed.scores[0] - yoloyard.load(weights, conf=0.001, device="cpu")(path).scores[0])) < 0.2

    client = subprocess.run(
        [sys.executable, onnx.with_name("client.py"), onnx, path], capture_output=True, text=True, check=False
    )
    if name == "deep":
        assert client.returncode == 0, client.stderr
        assert len(json.loads(client.stdout)) == len(yoloyard.load(onnx, device="cpu")(path).boxes)
    else:
        assert client.stderr.startswith(f"{onnx} takes images of 5 channels, which")
        with pytest.raises(UserError, match=r"\(height, width, 5\), not \(96, 128, 3\)"):
            model(np.zeros((96, 128, 3), np.uint8))


def yoloyard_pixels(path: Path) -> np.ndarray:
    """The five channels of a TIFF."""
    from tifffile import imread

    return np.asarray(imread(path))
