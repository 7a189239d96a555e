"""Training and validation on tiles: boxes, pixels, the order of an epoch, and how often images are decoded."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yoloyard.common.tiles import TileSpec, tile_boxes
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import Index, load_index
from yoloyard.data.index.tiled import boxes_in_tiles, tiled
from yoloyard.data.loading import image_cache
from yoloyard.data.loading.epoch_plan import EpochPlan, plan_epochs, with_share
from yoloyard.data.loading.loader import decoded_again, make_train_loader, make_val_loader
from yoloyard.data.loading.sampling import near_order, tile_batches

SPEC = TileSpec(64, 0.25, 0.5)
STILL = AugmentConfig(mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0)
CONFIG = TrainConfig(batch=4, imgsz=64, workers=0, seed=9, augment=STILL)


@pytest.fixture
def large(tmp_path: Path) -> Index:
    """9 images of about 150 x 200 pixels, the last two smaller than a tile, with a red rectangle for each box."""
    random = np.random.default_rng(3)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(9):
        height, width = (40, 50) if number > 6 else (150 + number, 200 - 3 * number)
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = random.integers(0, 100, (height, width))
        rows = []
        for _ in range(number % 4):
            x, y, w, h = (int(each) for each in random.integers(4, 36, 4))
            x, y = (x * width // 60, y * height // 60)
            w, h = min(w, width - x), min(h, height - y)
            image[y : y + h, x : x + w, 2] = 255  # BGR
            rows.append(f"0 {(x + w / 2) / width:.8f} {(y + h / 2) / height:.8f} {w / width:.8f} {h / height:.8f}\n")
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
        (tmp_path / "labels" / f"{number}.txt").write_text("".join(rows))
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [dent]\n")
    return load_index(read_data_yaml(tmp_path / "data.yaml"), "train")


boxes_of_an_image = st.lists(
    st.tuples(st.integers(0, 250), st.integers(0, 150), st.integers(1, 200), st.integers(1, 200)), max_size=6
)


@settings(max_examples=15, deadline=None)
@given(boxes_of_an_image, st.floats(0.01, 1), st.sampled_from([0.0, 0.2, 0.5]))
def test_boxes_count_where_enough_of_them_is_and_nowhere_else(
    drawn: list[tuple[int, int, int, int]], visible: float, overlap: float
) -> None:
    tiles = tile_boxes(200, 300, TileSpec((64, 80), overlap))
    boxes = np.array([(x, y, min(x + w, 300), min(y + h, 200)) for x, y, w, h in drawn], np.float32).reshape(-1, 4)
    expected = []
    masks = np.zeros((len(boxes), 200, 300), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int).tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    areas = np.array([[mask[b:d, a:c].sum() for mask in masks] for a, b, c, d in tiles.tolist()])
    for number, (left, top, right, bottom) in enumerate(tiles.tolist()):
        for row, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            inside, most = areas[number, row], min(x2 - x1, 80) * min(y2 - y1, 64)
            if inside and (inside >= visible * most or inside == areas[:, row].max()):
                expected.append((number, row, (max(x1, left), max(y1, top), min(x2, right), min(y2, bottom))))
    of_tile, cut, rows = boxes_in_tiles(boxes, tiles, visible)
    corners = tiles[of_tile][:, [0, 1, 0, 1]]
    found = zip(of_tile.tolist(), rows.tolist(), map(tuple, (cut + corners).tolist()), strict=True)
    assert list(found) == expected
    assert set(rows) == set(range(len(boxes)))  # none is lost


def test_tiles_hold_the_pixels_of_their_images_and_boxes_lie_on_them(large: Index) -> None:
    tiles = tiled(large, SPEC)
    tiling = tiles.tiling
    assert tiling is not None
    whole = [image_cache.load_resized(large, number, None) for number in range(len(large))]
    seen = 0
    for batches in (make_train_loader(tiles, CONFIG).epoch(0), make_val_loader(tiles, 64, 5)):
        for batch in batches:
            for row, number in enumerate(batch.image_ids):
                (left, top, right, bottom), source = tiling.crops[number], tiling.sources[number]
                image = whole[source]
                assert tiles.paths[number] == large.paths[source]
                pixels = batch.images[row].permute(1, 2, 0).numpy()
                y, x = (64 - (bottom - top)) // 2, (64 - (right - left)) // 2
                assert (pixels[y : y + bottom - top, x : x + right - left] == image[top:bottom, left:right]).all()
                for box in batch.boxes[row][batch.labels[row] >= 0].round().int().tolist():
                    assert (pixels[box[1] : box[3], box[0] : box[2], 0] == 255).all()
                    seen += 1
    assert seen > 20


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40), st.sampled_from([1, 3, 4, 16, 32, 64]), st.integers(1, 90)
)
@settings(max_examples=60, deadline=None)
def test_an_order_of_near_tiles_is_a_permutation_by_seed_and_epoch(counts: list[int], batch: int, kept: int) -> None:
    sources = np.repeat(np.arange(len(counts)), counts)
    plan = EpochPlan(np.ones(len(sources)), batch, 64, 5, sources=sources, kept=kept)
    first, again, other = plan.order(0).images, plan.order(0).images, plan.order(1).images
    assert sorted(first) == list(range(len(sources)))
    assert (first == again).all()
    assert len(sources) < 10 or (first != other).any()


@pytest.mark.parametrize(("workers", "ranks"), [(1, 1), (2, 1), (8, 1), (4, 2)])
def test_each_image_is_decoded_about_once_an_epoch(workers: int, ranks: int) -> None:
    tiles_of_an_image, images, batch, kept = 20, 400, 32, 64
    sources = np.repeat(np.arange(images), tiles_of_an_image)
    order = sources[near_order(sources, batch, kept, np.random.default_rng(1))]
    decoded = 0
    for worker in range(workers):
        for rank in range(ranks):
            recent: dict[int, None] = {}
            for first in range(worker * batch, len(order), workers * batch):
                share = batch // ranks
                for image in order[first + rank * share : first + (rank + 1) * share].tolist():
                    decoded += image not in recent
                    recent.pop(image, None)
                    recent[image] = None
                    if len(recent) > kept // workers:
                        del recent[next(iter(recent))]
    assert images <= decoded < 1.1 * images
    different = [len(set(order[first : first + batch].tolist())) for first in range(0, len(order), batch)]
    assert np.mean(different) >= 4  # images of a batch


def test_loaders_decode_each_image_once(large: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[str] = Counter()
    real = image_cache.decode_image

    def counting(path: Path, *rest: Any, **named: Any) -> np.ndarray:
        decoded[path.name] += 1
        return real(path, *rest, **named)

    monkeypatch.setattr(image_cache, "decode_image", counting)
    tiles = tiled(large, SPEC)
    for batches in (
        make_train_loader(tiles, dataclasses.replace(CONFIG, augment=AugmentConfig())).epoch(0),
        make_val_loader(tiles, 64, 5),
    ):
        decoded.clear()
        list(batches)
        assert decoded == Counter({f"{number}.png": 1 for number in range(9)})


def test_full_images_are_kept_in_so_many_bytes(large: Index) -> None:
    sizes = large.pixels.image_bytes(*large.sizes.T.astype(np.int64))
    images = image_cache.RecentFullImages(large, most := 3 * int(sizes.max()))
    for position in [*range(9), 8, 7, 6, 0]:
        assert (images[position] == image_cache.load_resized(large, position, None)).all()
        assert sum(each.nbytes for each in images._images.values()) <= most
    assert list(images._images) == [8, 7, 6, 0]  # two of them are small
    last = image_cache.RecentFullImages(large, 0)
    assert all(last[position] is last[position] and len(last._images) == 1 for position in (0, 8, 3))


@pytest.mark.parametrize(
    ("kept", "workers", "ranks", "reason"),
    [
        (64, 8, 2, ""),
        (64, 3, 1, "3 workers need the same ones: --cache disk decodes each once; --workers 8 helps, too"),
        (59, 8, 1, "8 workers need the same ones: --cache disk decodes each once; --workers 4 helps, too"),
        (64, 0, 4, "4 processes need the same ones: --cache disk decodes each once"),
        (12, 4, 1, "only 3 of them may lie in the memory of a worker: "),
        (1200, 3, 1, ""),  # all of them are kept
    ],
)
def test_why_images_are_decoded_again_is_said(kept: int, workers: int, ranks: int, reason: str) -> None:
    plan = EpochPlan(np.ones(8000), 32, 64, 5, sources=np.repeat(np.arange(400), 20), kept=kept)
    found = decoded_again(plan, 400, workers, ranks)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize("change", [{"workers": 2}, {"cache": "ram"}, {"cache": "disk"}])
def test_workers_and_caches_change_no_sample(large: Index, change: dict[str, object]) -> None:
    tiles, augmented = tiled(large, SPEC), dataclasses.replace(CONFIG, augment=AugmentConfig(mixup=0.5))
    plain = make_train_loader(tiles, augmented).epoch(1)
    changed = make_train_loader(tiles, dataclasses.replace(augmented, **change)).epoch(1)  # type: ignore[arg-type]
    for one, other in itertools.islice(zip(plain, changed, strict=True), 8):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
def test_an_epoch_has_all_positive_tiles_and_the_share_of_others(large: Index, share: float) -> None:
    tiles = tiled(large, SPEC)
    positive = np.diff(tiles.offsets) > 0
    plan = plan_epochs(tiles, dataclasses.replace(CONFIG, tile_positive=share))
    drawn = [plan.order(epoch).images for epoch in range(5)]
    for images in drawn:
        assert sorted(images[positive[images]]) == list(np.flatnonzero(positive))
        assert positive[images].mean() == pytest.approx(share, abs=0.02)
    assert share == 1 or any(set(images) != set(drawn[0]) for images in drawn)
    assert (with_share(np.ones(3), np.ones(3, bool), share) == 1).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 20), st.integers(0, 4), st.integers(1, 3))
def test_validation_has_each_tile_once_and_an_image_in_one_rank(
    counts: list[int], batch: int, workers: int, ranks: int
) -> None:
    sources = np.repeat(np.arange(len(counts)), counts)
    of_ranks = [tile_batches(sources, batch, workers, rank, ranks) for rank in range(ranks)]
    assert sorted(tile for rank in of_ranks for tiles in rank for tile in tiles) == list(range(len(sources)))
    images = [{int(sources[tile]) for tiles in rank for tile in tiles} for rank in of_ranks]
    assert sum(map(len, images)) == len(counts)
    alone = tile_batches(sources, batch, 0, 0, 1)
    assert sorted(alone) == sorted(tiles for rank in of_ranks for tiles in rank)
    assert max(map(len, alone)) <= batch
