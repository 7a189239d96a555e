"""Small data sets written to disk, and a cache folder of the test's own."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index

MakeSet = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the cache of the person who runs it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("YOLOYARD_CACHE", str(folder))
    return folder


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """A function that writes `count` smooth random images with 0 to 4 boxes each, and gives the data.yaml."""

    def make(count: int = 24, longest: int = 48, suffix: str = ".png") -> Path:
        random = np.random.default_rng(5)
        images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            other = int(random.integers(longest // 2, longest + 1))
            height, width = (longest, other) if number % 2 else (other, longest)
            coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
            cv2.imwrite(str(images / f"{number:04}{suffix}"), cv2.resize(coarse, (width, height)))
            rows = []
            for _ in range(number % 5):
                (x, y), (w, h) = random.uniform(0.3, 0.7, 2), random.uniform(0.2, 0.6, 2)
                rows.append(f"{random.integers(0, 2)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n")
            (labels / f"{number:04}.txt").write_text("".join(rows))
        data = tmp_path / "data.yaml"
        data.write_text("train: images/train\nval: images/train\nnames: [dent, scratch]\n")
        return data

    return make


@pytest.fixture
def index(make_set: MakeSet) -> Index:
    """24 images of up to 48 pixels, 48 boxes of two classes."""
    return load_index(read_data_yaml(make_set()), "train")
