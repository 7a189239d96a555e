"""A weights file of tiles, as `yoloyard.load` and the server use it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from exported_files import document, write_onnx
from tiny_weights import write_tiny_weights
from yoloyard.commands.model import Model
from yoloyard.common.errors import UsageError
from yoloyard.common.structures import Detections
from yoloyard.common.tiles import TileSpec, tile_boxes
from yoloyard.demo.write import demo_image
from yoloyard.evaluation.seams import merge_seams
from yoloyard.models.weights import load_model, save_weights

TILE = TileSpec(96, overlap=0.25)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that was trained with TILE."""
    path = write_tiny_weights(tmp_path_factory.mktemp("tiled"))
    detector, metadata = load_model(path)
    save_weights(path, detector.state_dict(), {**metadata, "tile": TILE.as_dict()})
    return path


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return demo_image(0, "val", 1, 240).pixels[:200]


def same(one: Detections, other: Detections) -> bool:
    """But for roundings, which a batch may have others of."""
    close = len(one) == len(other) > 0 and torch.allclose(one.boxes, other.boxes, atol=0.01)
    return close and torch.allclose(one.scores, other.scores, atol=1e-4) and torch.equal(one.labels, other.labels)


def test_an_image_is_cut_as_the_file_says_and_its_tiles_are_merged(weights: Path, image: np.ndarray) -> None:
    whole, tiles = Model(weights, tile="off"), tile_boxes(200, 240, TILE)
    assert len(tiles) == 9
    found = [whole(image[top:bottom, left:right]) for left, top, right, bottom in tiles.tolist()]
    expected = merge_seams(found, tiles, whole.settings.iou, whole.settings.max_det)
    assert same(Model(weights)(image), expected)
    assert not same(whole(image), expected)


def test_tile_and_overlap_take_the_place_of_those_of_the_file(weights: Path, image: np.ndarray) -> None:
    assert Model(weights, tile=64, tile_overlap=0).tile == TileSpec(64, 0, 0.5)
    whole = Model(weights, tile="off")
    assert same(Model(weights, tile=240, imgsz=96)(image), whole(image))  # the image is one tile
    with pytest.raises(UsageError, match="takes whole images: say --tile PIXELS, too"):
        Model(weights, tile="off", tile_overlap=0.1)


def test_objects_keep_their_scale_in_other_tiles_or_a_line_says_so(
    weights: Path, tmp_path: Path, said: list[str]
) -> None:
    assert Model(weights, tile="160x192").imgsz == (160, 192)
    assert Model(weights, tile=192, tile_overlap=0.5).imgsz == 192
    assert Model(weights).imgsz == 96
    assert said == []
    assert Model(weights, tile=192, imgsz=96).imgsz == 96
    Model(weights, tile="off")
    text = json.dumps({**json.loads(document(shape=(64, 64))), "tile": {"size": 64, "overlap": 0.25}})
    Model(write_onnx(tmp_path / "tiled.onnx", text, ("batch", 3, 64, 64)), tile=128)
    assert said[:3] == [
        "tiles of 192 pixels that overlap by 25% at imgsz 96 show objects at 0.5 times the scale of the training",
        "the network is for tiles of 96 pixels that overlap by 25%: objects may come at another scale, "
        "which --imgsz decides",
        "tiles of 128 pixels that overlap by 25% at imgsz 64 show objects at 0.5 times the scale of the training",
    ]


def test_an_exported_file_is_used_by_tiles_of_its_one_shape(tmp_path: Path, image: np.ndarray) -> None:
    text = json.dumps({**json.loads(document(shape=(64, 64), max_batch=2)), "tile": {"size": 64, "overlap": 0.25}})
    tiled = Model(write_onnx(tmp_path / "tiled.onnx", text, ("batch", 3, 64, 64)))
    tiles = tile_boxes(200, 240, TileSpec(64, 0.25))
    once = Model(write_onnx(tmp_path / "once.onnx", document(shape=(64, 64)), ("batch", 3, 64, 64)))
    found = [once(image[top:bottom, left:right]) for left, top, right, bottom in tiles.tolist()]
    assert same(tiled(image), merge_seams(found, tiles, tiled.settings.iou, tiled.settings.max_det))
