"""Figures of tiled validation: with a detector that sees all that is drawn, they are those of whole images."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from yoloyard.common.device import Precision
from yoloyard.common.tiles import TileSpec
from yoloyard.config.settings import EvaluationConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.index.tiled import tiled
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.runtimes.runtime import Runtime

SIDE = 512  # the longer one of all images, so that whole images keep their pixels
SHAPES = [(300, 512), (512, 512), (512, 340), (100, 512), (411, 512)]


class Seeing(Runtime):
    """Finds the extent of each object that is drawn, by its number in red; its class is in green, its score in blue."""

    def __init__(self, suppression: bool) -> None:
        self.metadata, self.names, self.strides = {}, ("a", "b"), (32,)
        self.device, self.precision = torch.device("cpu"), Precision("cpu", torch.float32)
        self.suppression, self.fixed_shape, self.max_batch = suppression, None, None

    def candidates(self, images: Tensor, conf: float, multi_label: bool) -> Any:
        rows = []
        for where, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            for number in np.setdiff1d(image[..., 0], [114, 0]):
                ys, xs = np.nonzero(image[..., 0] == number)
                _, label, score = image[ys[0], xs[0]].tolist()
                rows.append((where, xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, score / 255, label))
        found = torch.tensor(np.array(rows, np.float32).reshape(-1, 7))
        return found[:, 0].long(), found[:, 1:5], found[:, 5], found[:, 6].long()

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.fixture
def drawn(tmp_path: Path) -> Index:
    """Images with defects from 3 pixels to more than a tile. Some are not labelled, some have another class."""
    random = np.random.default_rng(8)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, (height, width) in enumerate(SHAPES):
        image, lines = np.zeros((height, width, 3), np.uint8), []
        for number in range(1, 14):
            w, h = ((200, 7), (6, 180), (90, 90))[number] if number < 3 else random.integers(3, 50, 2)
            w, h = min(int(w), width // 2), min(int(h), height // 2)
            x, y = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
            if image[max(y - 4, 0) : y + h + 4, max(x - 4, 0) : x + w + 4].any():
                continue
            label, score = int(random.integers(0, 2)), 30 + 14 * number
            image[y : y + h, x : x + w] = score, label, number  # BGR
            if number % 5:
                label = label if number % 4 else 1 - label
                lines.append(f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n")
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        (tmp_path / "labels" / f"{name}.txt").write_text("".join(lines))
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    return load_index(read_data_yaml(tmp_path / "data.yaml"), "train")


@pytest.mark.parametrize("suppression", ["on", "off"])
@pytest.mark.parametrize(("spec", "batch"), [(TileSpec(128, 0.2), 7), (TileSpec((96, 160), 0.4), 64)])
def test_figures_of_tiles_are_those_of_whole_images(drawn: Index, suppression: str, spec: TileSpec, batch: int) -> None:
    network, settings = Seeing(suppression == "on"), EvaluationConfig(suppression=suppression)
    whole = predict_all(network, make_val_loader(drawn, SIDE, 4), settings)
    tiles = tiled(drawn, spec)
    size = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.size)
    finished: list[int] = []
    merged: dict[int, Any] = {}

    def count(images: int) -> bool:
        finished.append(images)
        return True

    for rank in (0, 1):
        loader = make_val_loader(tiles, size, batch, rank=rank, world_size=2)
        merged |= predict_all(network, loader, settings, count, tiling=tiles.tiling)
    assert sum(finished) == len(drawn) == len(merged)
    for image, found in whole.items():
        assert len(found) == len(merged[image])
        for name in ("scores", "labels", "boxes"):
            assert torch.equal(getattr(found, name), getattr(merged[image], name)), (image, name)
    expected, metrics = (evaluate(drawn, found, suppression=suppression).figures() for found in (whole, merged))
    assert metrics == expected
    assert 0.3 < expected["map50_95"] < 0.95
