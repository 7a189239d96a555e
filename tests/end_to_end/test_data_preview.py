"""`yoloyard data preview`: a page of what the network will see."""

import base64
import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands import TINY, exit_code
from yoloyard.commands.data_preview import GROUPS, STILL, UNSEEN, augmentations_alone
from yoloyard.config.settings import AugmentConfig
from yoloyard.demo.write import write_demo


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_demo(tmp_path / "line", seed=3, train=6, val=2, size=64)


def images_of(page: str) -> dict[str, np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"[^>]* alt="([^"]+)"', page)
    return {
        alt: np.asarray(cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_COLOR)).astype(int)
        for jpeg, alt in found
    }


def test_the_page_shows_samples_and_each_augmentation_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "inspection", "--rotate90", "90", "--belt-blur", "5", "--belt-angle", "90", "--mosaic", "0"]
    flags += ["--light", "0.3", "--noise", "0.02", "--close-mosaic", "0"]
    assert exit_code("data", "preview", data, *TINY, *flags) == 0
    path = Path("runs/preview/preview.html")
    assert capsys.readouterr().out.splitlines()[-1] == f"what the network will see: {path}"
    page = path.read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    for text in (
        "Network sees",
        "64x64",
        "light 0.3, noise 0.02, belt_blur 5.0, belt_angle 90.0",
        "Below 8 px",
        "inspection",
    ):
        assert text in page, text
    images = images_of(page)
    names = sorted({alt.split(":")[0] for alt in images})
    assert len(names) >= 3
    shown = {"copy_paste", "position", "colours", "flips", "rotate90", "light", "belt_blur", "noise"}
    shown |= {"labels", "what the network sees"}
    for name in names:
        assert {alt.split(": ")[1] for alt in images if alt.startswith(name)} == shown
        # Nothing else is on: two flips turn the image by 180 degrees.
        plain, flipped = images[f"{name}: noise"], images[f"{name}: flips"][::-1, ::-1]
        assert np.median(np.abs(plain - flipped)) < 12
    assert not (Path("runs/preview") / "checkpoints").exists()
    wide = ["32x96" if flag == "64" else flag for flag in TINY]
    assert exit_code("data", "preview", data, *wide) == 0
    assert "32x96" in Path("runs/preview-2/preview.html").read_text(encoding="utf-8")


def test_settings_that_change_nothing_of_what_is_seen_are_passed_over(data: Path) -> None:
    run = Path("runs/line")
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("name: line\nexist_ok: true\nprocesses: 3\nstrategy: fsdp\nimgsz: 96\n")
    flags = ["--strategy", "pipeline", "--sync-bn", "--cpu-offload", "--compress-gradients", "--compile", "--wandb"]
    flags += ["--single-cls", "--class-weights", "balanced", "--suppression", "off", "--cache", "tape"]
    flags += ["--best-by", "luck", "--on-divergence", "pray", "--freeze", "nothing", "--backup", "nowhere://x"]
    flags += ["--nodes", "1:4", "--rendezvous", "nowhere:1", "--notify", "https://chat.example"]
    assert exit_code("data", "preview", data, *TINY, "--config", run / "config.yaml", *flags) == 0
    assert [path.name for path in run.iterdir()] == ["checkpoints", "config.yaml"]
    passed_over = Path("runs/preview/preview.html").read_bytes()
    assert exit_code("data", "preview", data, *TINY, "--single-cls") == 0
    assert Path("runs/preview-2/preview.html").read_bytes() == passed_over
    assert UNSEEN.isdisjoint(("batch", "epochs", "fraction", "imgsz", "model", "rect", "seed", "time", "transform"))


def test_every_augmentation_has_its_group() -> None:
    assert {*STILL, "close_mosaic"} == {field.name for field in dataclasses.fields(AugmentConfig)}
    still = AugmentConfig(**STILL)
    assert augmentations_alone(still, True) == {}
    config = dataclasses.replace(still, fliplr=0.2, mosaic=0.3, light=0.4)
    alone = augmentations_alone(config, True)
    assert [*alone] == ["mosaic", "flips", "light"]
    assert (alone["flips"].fliplr, alone["flips"].flipud, alone["flips"].light) == (1, 0, 0)
    assert (alone["light"].light, alone["light"].mosaic) == (0.4, 0)
    assert [*augmentations_alone(config, False)] == ["flips", "light"]
    assert {name for names in GROUPS.values() for name in names} == {*STILL}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--light", "2"], "'light' must be at most 1, not 2.0"),
        (["--preset", "inspector"], "'preset' must be inspection, not 'inspector'"),
        (["--rotate90", "45"], "'rotate90' must be 0 or 180 or 90, not '45'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    data: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("data", "preview", data, *TINY, *flags) == 2
    assert message in capsys.readouterr().err
    assert exit_code("data", "preview", "nothing.yaml", *TINY) != 0
    assert "nothing.yaml" in capsys.readouterr().err
    assert not Path("runs").exists()
