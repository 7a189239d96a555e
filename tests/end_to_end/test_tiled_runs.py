"""A run of `--tile`, and what is done with its weights."""

import json
from pathlib import Path

import pytest

from commands import TINY, Command
from squares import write_squares
from yoloyard.models.weights import read_weights

WORDS = [word for word in TINY if word not in ("--imgsz", "64")]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Six images of 150 x 260 pixels with two bright squares each; the data.yaml."""
    centres = [[(40 + 10 * number, 60), (75, 200)] for number in range(6)]
    return write_squares(tmp_path / "large", (150, 260), 20, centres)


@pytest.mark.slow
def test_a_run_on_tiles(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yoloyard: Command) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiled = ("--tile", "60x90", "--tile-positive", 0.5)
    code, out, err = yoloyard("train", "--data", large, "--epochs", 1, *tiled, *WORDS)
    assert code == 0, err
    assert "tiles of 60x90 pixels that overlap by 20%: 72 of 6 images" in out
    assert "6 images, 6 for validation" in out
    samples = json.loads(Path("runs/large/environment.json").read_text())["samples"]
    assert f"{samples['train']} of them an epoch" in out
    assert (samples["val"], samples["val_pixels"]) == (72, 150 * 260 / 12)
    assert samples["train_pixels"] == pytest.approx(6 * 150 * 260 / samples["train"])
    best = Path("runs/large/weights/best.safetensors")
    metadata = read_weights(best)[1]
    assert (metadata["tile"], metadata["imgsz"]) == ({"size": [60, 90], "overlap": 0.2, "visible": 0.5}, [64, 96])
    assert "tiles of 60x90 pixels that overlap by 20%" in Path("runs/large/report.html").read_text()

    code, _, err = yoloyard("train", "--resume", "runs/large", "--epochs", 2, "--tile", 64)
    assert (code, "a resumed run can't change tile" in err) == (2, True)
    assert yoloyard("train", "--resume", "runs/large", "--epochs", 2)[0] == 0

    # The same figures as in training; whole images give others.
    code, out, err = yoloyard("val", "--weights", best, "--data", large, "--json")
    assert code == 0, err
    figures, of_training = json.loads(out)["figures"], read_weights(best)[1]["metrics"]
    assert figures == pytest.approx({name: of_training[name] for name in figures}, abs=1e-6, nan_ok=True)
    assert yoloyard("val", "--weights", best, "--data", large, "--tile", "off")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tile", 300), "no training image is larger than a tile, all are within 150x260 pixels"),
        (("--tile", 20), "a tile has at least 32 pixels a side"),
        (("--tile", 64, "--tile-overlap", 1), "'tile_overlap' must be at most 0.99"),
        (("--tile", 64, "--tile-visible", 0), "'tile_visible' must be at least 0.01"),
        (("--tile", 64, "--rect"), "leave out --rect or --tile"),
        (("--tile-positive", 0.5), "say --tile PIXELS too"),
    ],
)
def test_what_no_tile_can_do_is_said_in_a_line(
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    yoloyard: Command,
    words: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    code, _, err = yoloyard("train", "--data", large, "--epochs", 1, *words, *TINY)
    assert code in (1, 2)
    assert message in err
    assert len(err.strip().splitlines()) == 1
