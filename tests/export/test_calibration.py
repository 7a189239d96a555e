"""int8 is calibrated with training images, in the form that predict gives a network."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_graph import SIDE, job_in
from torch import Tensor

import yoloyard
from yoloyard.common.errors import UsageError, UserError
from yoloyard.data.pixels.decode import decode_image, encode_jpeg
from yoloyard.export import calibration
from yoloyard.export.calibration import CalibrationImages, bfloat16_line, calibration_images
from yoloyard.models.heads import Found
from yoloyard.models.registry import build
from yoloyard.models.weights import save_weights

SHAPES = ((48, 64), (64, 40), (50, 50))  # of the images, in turns


@pytest.fixture(autouse=True)
def no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU of which nothing is said, whatever this one is."""
    monkeypatch.setattr(calibration, "bfloat16_line", lambda: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data.yaml with 40 training images, which have no labels, and no others."""
    folder = tmp_path_factory.mktemp("data")
    images = folder / "images" / "train"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(40):
        pixels = random.integers(0, 256, (*SHAPES[number % 3], 3), np.uint8)
        (images / f"{number:02d}.jpg").write_bytes(encode_jpeg(pixels, 92))
    (folder / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a, b]\n")
    return folder / "data.yaml"


def paths_of(images: CalibrationImages) -> list[Path]:
    return [images.batches.index.paths[position] for (position,), _ in images.requests]


def test_the_images_are_spread_over_the_set_and_always_the_same(data: Path, tmp_path: Path) -> None:
    job = job_in(tmp_path, data=str(data), calibration_images=8)
    chosen = [int(path.stem) for path in paths_of(calibration_images(job))]
    assert [number // 5 for number in chosen] == list(range(8))
    assert [int(path.stem) for path in paths_of(calibration_images(job))] == chosen


def test_a_file_of_one_shape_gets_images_padded_to_it(data: Path, tmp_path: Path) -> None:
    images = list(calibration_images(job_in(tmp_path, data=str(data), calibration_images=40)))
    assert {(image.shape, image.dtype.name) for image in images} == {((1, 3, SIDE, SIDE), "float32")}
    grey = np.float32(114) / 255
    assert (images[0][:, :, :8] == grey).all()  # an image of 48 x 64 has 8 rows of padding above and below
    assert not (images[0][:, :, 8] == grey).all()


def test_a_network_of_tiles_gets_tiles_with_boxes_cut_from_the_images(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data.parent, tmp_path / "labelled")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    for number in range(40):
        (labels / f"{number:02d}.txt").write_text("0 0.9 0.9 0.1 0.1\n")
    job = job_in(tmp_path, data=str(folder / "data.yaml"), calibration_images=6)
    images = calibration_images(replace(job, metadata={**job.metadata, "tile": {"size": 32, "overlap": 0.0}}))
    for path, image in zip(paths_of(images), images, strict=True):
        corner = decode_image(path)[-32:, -32:]
        assert image.shape == (1, 3, SIDE, SIDE)
        expected = cv2.resize(corner, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1) / np.float32(255)
        assert (image[0] == expected).all()


class Recorder:
    """A network that finds nothing and keeps the images that it is given."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor, conf: float, multi_label: bool) -> Found:
        self.images.append(images)
        none = torch.zeros(0, dtype=torch.int64)
        return none, torch.zeros(0, 4), torch.zeros(0), none


def test_a_dynamic_file_gets_the_images_that_predict_gives(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "best.safetensors"
    facts = {"model": "yolov5n", "model_arguments": {"num_classes": 2}, "names": ["a", "b"], "imgsz": SIDE}
    save_weights(weights, build("yolov5n", num_classes=2).state_dict(), facts)
    model, recorder = yoloyard.load(weights, device="cpu"), Recorder()
    monkeypatch.setattr(model.network, "candidates", recorder)
    images = calibration_images(job_in(tmp_path, shape=None, data=str(data), calibration_images=3))
    model(paths_of(images))
    for given, calibrated in zip(recorder.images, images, strict=True):
        assert np.array_equal((given / 255).numpy(), calibrated)


def test_fewer_images_than_asked_for_are_all_taken_with_a_line(data: Path, tmp_path: Path, said: list[str]) -> None:
    assert len(calibration_images(job_in(tmp_path, data=str(data), calibration_images=300))) == 40
    assert said == [f"int8 is calibrated with 40 of the 40 training images of {data}, not with 300"]


def test_very_few_images_are_named_as_such(data: Path, tmp_path: Path, said: list[str]) -> None:
    assert len(calibration_images(job_in(tmp_path, data=str(data), calibration_images=5))) == 5
    assert said == [
        f"int8 is calibrated with 5 of the 40 training images of {data}",
        "with fewer than 32 images int8 depends on which they are",
    ]


def test_a_data_set_without_training_images_is_named(data: Path, tmp_path: Path) -> None:
    without = tmp_path / "data.yaml"
    without.write_text(f"val: {data.parent / 'images' / 'train'}\nnames: [a, b]\n")
    with pytest.raises(UsageError, match=r"data\.yaml has no 'train'"):
        calibration_images(job_in(tmp_path, data=str(without)))
    without.write_text("train: gone\nval: gone\nnames: [a, b]\n")
    with pytest.raises(UserError, match=r"train is .*gone, which does not exist"):
        calibration_images(job_in(tmp_path, data=str(without)))


def test_an_image_that_goes_away_meanwhile_is_named(data: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.jpg").write_bytes((data.parent / "images/train/00.jpg").read_bytes())
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    found = calibration_images(job_in(tmp_path, data=str(tmp_path / "data.yaml")))
    (images / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*0\.jpg"):
        list(found)


@pytest.mark.parametrize(("flags", "is_said"), [("avx512_bf16 amx_tile", False), ("amx_bf16 amx_int8", True)])
def test_a_cpu_with_amx_is_told_of_bfloat16(tmp_path: Path, flags: str, is_said: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: fpu {flags} sse\n")
    assert ("bf16" in (bfloat16_line(tmp_path / "cpuinfo") or "")) is is_said
    assert bfloat16_line(tmp_path / "none of Linux") is None
