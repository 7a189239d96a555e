"""A network finds the same boxes whichever exported file it is in and whichever library computes it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import yoloyard
from exported_files import (
    NAMES,
    SUFFIXES,
    WRITERS,
    Files,
    Patches,
    document,
    write_ir,
    write_onnx,
    write_suppressed_onnx,
)
from yoloyard.common.errors import UserError
from yoloyard.common.structures import Batch, images_to_float
from yoloyard.config.settings import EvaluationConfig
from yoloyard.evaluation.validate import predict_all
from yoloyard.models.heads.head import above
from yoloyard.runtimes.document import read_document
from yoloyard.runtimes.exported import Exported, Program
from yoloyard.runtimes.load import load_runtime

RGB = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """uint8 (3, 3, 64, 96), as a loader gives them."""
    torch.manual_seed(1)
    return torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_runtimes_find_what_the_network_finds(suffix: str, multi_label: bool, files: Files, images: Tensor) -> None:
    boxes, scores = Patches()(images_to_float(images))
    where, points, labels, values = above(scores, 0.4, multi_label)
    assert 0 < len(where) < scores.numel()
    runtime = load_runtime(files[suffix])
    found = runtime.candidates(images, 0.4, multi_label)
    assert torch.equal(found[0], where)
    assert torch.equal(found[3], labels)
    torch.testing.assert_close(found[1], boxes[where, points], atol=3e-4, rtol=0)  # of 320 pixels
    torch.testing.assert_close(found[2], values, atol=1e-6, rtol=0)
    assert (runtime.names, runtime.strides, runtime.fixed_shape, runtime.max_batch) == (NAMES, (32,), None, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_images_give_the_same_numbers_each_time(suffix: str, files: Files, images: Tensor) -> None:
    runtime = load_runtime(files[suffix])
    first, *others = [runtime.candidates(images, 0.4, False) for _ in range(4)]
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_is_read_without_the_network(suffix: str, files: Files, tmp_path: Path) -> None:
    known = read_document(files[suffix])
    assert known is not None
    assert known["file"]["names"] == list(NAMES)
    assert read_document(WRITERS[suffix](tmp_path / f"other{suffix}")) is None


def test_an_exported_file_is_used_as_a_weights_file(files: Files) -> None:
    model = yoloyard.load(files[".onnx"])
    assert (model.names, model.imgsz, model.settings.conf, model.settings.iou) == (NAMES, 64, 0.4, 0.6)
    found = model([RGB, RGB[:40]])
    assert [len(each) > 0 for each in found] == [True, True]
    assert torch.equal(found[0].boxes, yoloyard.load(files[".onnx"])(RGB).boxes)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_file_of_one_shape_pads_to_it_and_says_so_once(suffix: str, tmp_path: Path, said: list[str]) -> None:
    write = write_onnx if suffix == ".onnx" else write_ir
    path = write(tmp_path / f"best{suffix}", document(shape=(96, 96)), shape=("batch", 3, 96, 96))
    model = yoloyard.load(path)
    assert (model.network.fixed_shape, model.imgsz) == ((96, 96), 96)
    model([RGB, RGB[:20]])
    assert said == [f"best{suffix} takes images of 96 x 96 pixels alone: all are padded to that"]
    assert yoloyard.load(path, imgsz=90).imgsz == 96
    with pytest.raises(UserError, match=r"takes images of 96 x 96 pixels alone: leave out --imgsz 128"):
        yoloyard.load(path, imgsz=128)


def test_shapes_that_a_file_cannot_take_are_refused(files: Files, images: Tensor, tmp_path: Path) -> None:
    fixed = load_runtime(write_onnx(tmp_path / "a.onnx", document(shape=(96, 96)), ("batch", 3, 96, 96)))
    with pytest.raises(UserError, match=r"takes images of 96 x 96, not 64 x 96"):
        fixed.candidates(images, 0.4, False)
    with pytest.raises(UserError, match=r"takes images of multiples of 32 pixels, not 60 x 96"):
        load_runtime(files[".onnx"]).candidates(images[:, :, :60], 0.4, False)


@pytest.mark.parametrize("write", [write_onnx, write_ir])
def test_a_batch_above_the_files_own_is_an_error_and_one_below_it_is_filled_up(
    write: Callable[..., Path], images: Tensor, tmp_path: Path
) -> None:
    suffix = ".onnx" if write is write_onnx else ".xml"
    runtime = load_runtime(write(tmp_path / f"two{suffix}", document(), shape=(2, 3, "height", "width")))
    whole = load_runtime(write(tmp_path / f"any{suffix}", document()))
    assert runtime.max_batch == 2
    with pytest.raises(UserError, match=r"takes at most 2 images at once, not 3"):
        runtime.candidates(images, 0.4, False)
    found, wanted = (each.candidates(images[:1], 0.4, False) for each in (runtime, whole))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_batch_that_exhausts_the_memory_is_taken_in_parts(images: Tensor, tmp_path: Path) -> None:
    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Patches()(images)

    program = Program([(None, 3, None, None)], (), compute, torch.device("cpu"))
    network = Exported(tmp_path / "best.pt2", program, json.loads(document()), ())
    batch = Batch(images, torch.zeros(3, 0, 4), torch.zeros(3, 0), torch.zeros(3, 0), [7, 8, 9], [None] * 3)
    assert predict_all(network, [batch], EvaluationConfig()).keys() == {7, 8, 9}


def test_sizes_that_torch_has_fixed_while_it_exported_are_fixed(tmp_path: Path) -> None:
    assert load_runtime(write_onnx(tmp_path / "a.onnx", document(), ("batch", 3, "64", "96"))).fixed_shape == (64, 96)


def test_of_suppression_inside_its_boxes_are_the_candidates(tmp_path: Path, said: list[str]) -> None:
    rows: list[list[float]] = [[0, 0, 9, 9, 0.9, 1], [20, 20, 30, 30, 0.3, 0], [0, 0, 0, 0, 0, -1]]
    path = write_suppressed_onnx(tmp_path / "best.onnx", rows)
    model = yoloyard.load(path, conf=0.25, iou=0.5)
    assert said == []
    found = model(RGB)
    assert (found.labels.tolist(), found.scores.tolist()) == ([1, 0], pytest.approx([0.9, 0.3]))
    assert len(yoloyard.load(path, conf=0.5)(RGB)) == 1
    assert said == [
        "best.onnx suppresses by itself: nothing comes out of it below confidence 0.25, above IoU 0.5 or beyond 300 "
        "boxes an image"
    ]
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    where, boxes, _, _ = model.network.candidates(images, 0.25, True)
    assert where.tolist() == [0, 0, 1, 1]
    assert boxes[0].tolist() == [0, 0, 9, 9]


@pytest.mark.parametrize("outputs", [("boxes", "scores"), ("scores", "boxes"), ("joined",)])
@pytest.mark.parametrize("write", [write_onnx, write_ir])
def test_a_file_of_another_program_works_with_names(
    write: Callable[..., Path], outputs: tuple[str, ...], tmp_path: Path, said: list[str]
) -> None:
    path = tmp_path / ("other.onnx" if write is write_onnx else "other.xml")
    write(path, outputs=outputs, shape=("batch", 3, 320, 320))
    model = yoloyard.load(path, names=["a", "b"], conf=0.4)
    assert (model.names, model.imgsz) == (("a", "b"), 320)
    [line] = said
    assert line == (
        f"{path.name} has no metadata of yoloyard: assumed are RGB, 0 .. 1, a centred letterbox on grey, 320 x 320 "
        "pixels, confidence above 0.4, suppression at IoU 0.5"
    )
    images = torch.randint(0, 256, (2, 3, 320, 320), dtype=torch.uint8)
    boxes, scores = Patches()(images_to_float(images))
    if outputs == ("joined",):
        middles, sizes = boxes.split(2, dim=2)
        boxes = torch.cat((middles - sizes / 2, middles + sizes / 2), dim=2)
    where, points, labels, _ = above(scores, 0.4, False)
    found = model.network.candidates(images, 0.4, False)
    assert torch.equal(found[3], labels)
    torch.testing.assert_close(found[1], boxes[where, points], atol=3e-4, rtol=0)  # of 320 pixels
