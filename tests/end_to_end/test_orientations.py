"""One image, stored in the eight ways that a camera may be held, is one image everywhere."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from yoloyard.commands.model import Model
from yoloyard.common.device import choose_precision
from yoloyard.common.structures import images_to_float
from yoloyard.config.settings import AugmentConfig, EvaluationConfig, TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader, make_val_loader
from yoloyard.data.pixels.decode import decode_image
from yoloyard.evaluation.validate import predict_all
from yoloyard.models import registry
from yoloyard.models.weights import save_weights
from yoloyard.runtimes.network import Network

UNCHANGED = AugmentConfig(mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0)
TURNS = {  # how an image is stored that is seen after the turn of EXIF 2.32, tag 0x0112
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(params=[".png", ".webp", ".tif"])
def eight(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data.yaml of the same image in eight orientations, with the same two boxes."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    coarse = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    seen = Image.fromarray(cv2.resize(coarse, (90, 60), interpolation=cv2.INTER_CUBIC))
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for orientation, turn in TURNS.items():
        stored = seen if turn is None else seen.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"tiffinfo": exif} if request.param == ".tif" else {"exif": exif}
        stored.save(images / f"{orientation}{request.param}", lossless=True, **options)
        (labels / f"{orientation}.txt").write_text("0 0.3 0.4 0.2 0.3\n1 0.8 0.7 0.1 0.5\n")
    data = tmp_path / "data.yaml"
    data.write_text("train: images\nval: images\nnames: [dent, scratch]\n")
    return data


def test_training_validation_and_predict_see_the_eight_orientations_as_one(eight: Path) -> None:
    index = load_index(read_data_yaml(eight), "train")
    assert len(index) == 8
    assert (index.sizes == (60, 90)).all()

    config = TrainConfig(batch=8, imgsz=96, workers=0, augment=UNCHANGED)
    (batch,) = make_train_loader(index, config).epoch(0)
    assert (batch.images == batch.images[:1]).all()
    assert (batch.boxes == batch.boxes[:1]).all()
    assert (batch.labels == torch.tensor([0, 1] + [-1] * (batch.labels.shape[1] - 2))).all()

    torch.manual_seed(0)
    detector = registry.build("yolo11n", num_classes=2)
    for _ in range(20):  # until its normalisation lets differences through, up to the boxes
        detector(images_to_float(batch.images))
    detector.eval()
    cpu = torch.device("cpu")
    network = Network(detector, cpu, choose_precision(cpu, amp=False))
    settings = EvaluationConfig(conf=0.0, max_det=20)
    for members in (8, 1):
        loader = make_val_loader(index, 96, members)
        (first, *others) = predict_all(network, loader, settings).values()
        assert len(first) == 20
        for other in others:
            assert torch.allclose(first.boxes, other.boxes, atol=1e-3)
            assert torch.equal(first.labels, other.labels)
    weights = eight.with_name("random.safetensors")
    save_weights(
        weights,
        detector.state_dict(),
        {"model": "yolo11n", "model_arguments": {"num_classes": 2}, "names": ["dent", "scratch"], "imgsz": 96},
    )
    model = Model(weights, "cpu", conf=0.0, iou=settings.iou, max_det=20)
    (found, *others) = model([str(path) for path in index.paths])
    assert len(found) == 20
    assert all(torch.equal(found.boxes, other.boxes) for other in others)
    mirrored = model(np.ascontiguousarray(decode_image(index.paths[0])[:, ::-1]))
    assert not torch.allclose(found.boxes, mirrored.boxes, atol=1)  # these boxes do depend on the image
