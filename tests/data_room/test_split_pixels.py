"""Sets of images with other channels and bits: from the data.yaml to batches and the input of the network."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from yoloyard.commands.sources import find_sources, images_of
from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.structures import images_to_float
from yoloyard.config.settings import AugmentConfig, TrainConfig
from yoloyard.data.audit.duplicates import find_duplicates
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.pixel_keys import pixel_keys, read_pixel_keys
from yoloyard.data.index.index import Index, load_index, read_split
from yoloyard.data.loading.loader import make_train_loader, make_val_loader
from yoloyard.training.setup.dataset import load_splits, load_splits_again

RANDOM = np.random.default_rng(1)
Write = Callable[[Path, int], None]


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes four images by `write(path without suffix, number)`, and gives the data.yaml."""

    def make(write: Write, keys: str = "", count: int = 4, folder: str = "images") -> Path:
        for number in range(count):
            path = tmp_path / folder / f"{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, number)
        data = tmp_path / "data.yaml"
        data.write_text(f"train: {folder}\nval: {folder}\nnames: [dent]\n{keys}")
        return data

    return make


def label(path: Path) -> None:
    place = Path(str(path).replace("/images/", "/labels/") + ".txt")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("0 0.5 0.5 0.4 0.4\n")


def deep_grey(path: Path, number: int) -> None:
    label(path)
    values = RANDOM.integers(0, 4096, (40, 64)).astype(np.uint16)
    values[0, 0] = 4095
    cv2.imwrite(f"{path}.png", values)


def shallow_grey(path: Path, number: int) -> None:
    label(path)
    cv2.imwrite(f"{path}.png", RANDOM.integers(0, 256, (40, 64)).astype(np.uint8))


def five_channels(path: Path, number: int) -> None:
    label(path)
    values = RANDOM.integers(0, 65536, (40, 64, 5)).astype(np.uint16)
    values[0, 0] = 65535
    tifffile.imwrite(f"{path}.tif", values, photometric="minisblack", planarconfig="contig")


def three_lights(path: Path, number: int) -> None:
    label(path.with_name(f"{path.name}_a"))
    for mark in ("_a", "_b", "_c"):
        cv2.imwrite(f"{path}{mark}.png", RANDOM.integers(0, 65536, (40, 64)).astype(np.uint16))


def config_for(index: Index, **settings: object) -> TrainConfig:
    plain = AugmentConfig(mosaic=0.0, mixup=0.0, scale=0.0, translate=0.0, degrees=0.0, fliplr=0.0, hsv_v=0.0)
    return replace(TrainConfig(batch=len(index), imgsz=64, workers=0, augment=plain), **settings)  # type: ignore[arg-type]


def network_inputs(index: Index, **settings: object) -> dict[int, torch.Tensor]:
    """What the network gets of each image, from the loader of training."""
    loader = make_train_loader(index, config_for(index, **settings))
    batches = list(loader.epoch(0))
    assert all(batch.images.dtype == torch.uint16 for batch in batches)
    return {image: images_to_float(batch.images)[row] for batch in batches for row, image in enumerate(batch.image_ids)}


def test_keys_that_are_written_are_read_again() -> None:
    for spec, bits in (
        (PixelSpec(), None),
        (PixelSpec(channels=1, bits=16, window=(64.0, 4095.0)), 16),
        (PixelSpec(channels=2, window=(0.5, 99.5), percent=True, files=("top/", "left/")), None),
    ):
        keys = pixel_keys(spec, bits)
        assert read_pixel_keys(Path("data.yaml"), keys, keys) == (spec, bits)


def test_a_step_of_65535_reaches_the_network(write_set: Callable[..., Path], tmp_path: Path) -> None:
    values = RANDOM.integers(0, 65536, (64, 64)).astype(np.uint16)
    values[7, 9], values[0, 0] = 1234, 65535

    def write(path: Path, number: int) -> None:
        label(path)
        one = values.copy()
        one[7, 9] += number
        cv2.imwrite(f"{path}.png", one)

    index = load_index(read_data_yaml(write_set(write, "channels: 1\n", count=2)), "train")
    assert index.pixels == PixelSpec(channels=1, bits=16)
    inputs = network_inputs(index)
    assert inputs[0].shape == (1, 64, 64)
    assert np.flatnonzero((inputs[0] != inputs[1]).numpy()[0].ravel()).tolist() == [7 * 64 + 9]
    assert (inputs[1] - inputs[0])[0, 7, 9].item() == pytest.approx(1 / 65535, rel=1e-3)


@pytest.mark.parametrize(
    ("write", "keys", "channels"),
    [(deep_grey, "", 3), (deep_grey, "channels: 1\n", 1), (five_channels, "channels: 5\n", 5)],
)
def test_batches_of_training_and_validation(
    write_set: Callable[..., Path], write: Write, keys: str, channels: int
) -> None:
    index = load_index(read_data_yaml(write_set(write, keys)), "train")
    assert index.pixels == PixelSpec(channels=channels, bits=16)
    trained = network_inputs(index)
    for cache in ("ram", "disk"):
        assert all((each == trained[image]).all() for image, each in network_inputs(index, cache=cache).items())
    (batch,) = make_val_loader(index, 64, 4, fixed_shape=(64, 64))
    assert batch.images.dtype == torch.uint16
    assert batch.images.shape == (4, channels, 64, 64)
    assert batch.rows(slice(1, 3)).images.shape == (2, channels, 64, 64)
    assert batch.to(torch.device("cpu")).images.is_contiguous(memory_format=torch.channels_last)
    seen = images_to_float(batch.images)[:, :, 12:52]  # between the padding
    assert all((seen[row] == trained[image][:, 12:52]).all() for row, image in enumerate(batch.image_ids))


def test_workers_hand_over_16_bits(write_set: Callable[..., Path]) -> None:
    index = load_index(read_data_yaml(write_set(deep_grey, "channels: 1\n")), "train")
    here = network_inputs(index)
    there = network_inputs(index, workers=1)
    assert all((here[image] == there[image]).all() for image in here)


def test_files_of_several_lights_are_one_image(write_set: Callable[..., Path], tmp_path: Path) -> None:
    data = write_set(three_lights, "files: [_a, _b, _c]\n")
    index = load_index(read_data_yaml(data), "train")
    assert [path.name for path in index.paths] == [f"{number}_a.png" for number in range(4)]
    assert index.pixels == PixelSpec(channels=3, bits=16, files=("_a", "_b", "_c"))
    assert len(index.boxes) == 4
    assert not index.problems
    inputs = network_inputs(index)
    files = [str(tmp_path / f"images/2{mark}.png") for mark in ("_a", "_b", "_c")]
    stack = np.stack([np.asarray(cv2.imread(file, cv2.IMREAD_UNCHANGED)) for file in files])
    assert (inputs[2].numpy()[:, 12:52] == stack / np.float32(65535)).all()
    # The index and the cache of decoded images follow a file that isn't the first.
    network_inputs(index, cache="disk")
    cv2.imwrite(str(tmp_path / "images/2_b.png"), np.zeros((40, 64), np.uint16))
    again = load_index(read_data_yaml(data), "train")
    assert again.file != index.file
    assert (network_inputs(again, cache="disk")[2][1, 12:52] == 0).all()


def test_lights_in_folders_and_lists(write_set: Callable[..., Path], tmp_path: Path) -> None:
    def write(path: Path, number: int) -> None:
        for light in ("top", "left"):
            (path.parent / light).mkdir(exist_ok=True)
            cv2.imwrite(f"{path.parent}/{light}/{number}.png", np.full((40, 64), 90 + number, np.uint8))
        label(path.parent / "top" / f"{number}")

    data = write_set(write, "files: [top/, left/]\n")
    for train in ("images", "images/top", "images/left", "list.txt"):  # whichever names them
        (tmp_path / "list.txt").write_text("".join(f"images/left/{number}.png\n" for number in range(4)))
        data.write_text(f"train: {train}\nval: images\nnames: [dent]\nfiles: [top/, left/]\n")
        index = load_index(read_data_yaml(data), "train")
        assert [path.parent.name for path in index.paths] == ["top"] * 4
        assert len(index.boxes) == 4


def test_what_is_wrong_with_files_of_an_image_is_named(write_set: Callable[..., Path], tmp_path: Path) -> None:
    data = write_set(three_lights, "files: [_a, _b, _c]\n", count=6)
    images = tmp_path / "images"
    (images / "0_b.png").unlink()
    (images / "1_a.png").unlink()
    cv2.imwrite(str(images / "2_c.png"), np.zeros((41, 64), np.uint16))
    cv2.imwrite(str(images / "3_c.png"), np.zeros((40, 64), np.uint8))
    (images / "4_b.png").write_bytes(b"")
    cv2.imwrite(str(images / "other.png"), np.zeros((40, 64), np.uint16))
    index = read_split(read_data_yaml(data), "train")
    assert [path.name for path in index.paths] == ["5_a.png"]
    assert index.skipped == 6
    usual = "of the same image 64x40 pixels of 16 bits"
    said = {str(problem).replace(str(images), "") for problem in index.problems if problem.is_error}
    assert said == {
        "/0_a.png: there is no /0_b.png, another file of this image; image skipped",
        "/1_a.png: there is no /1_a.png, another file of this image; image skipped",
        f"/2_c.png: it has 64x41 pixels of 16 bits, but 2_a.png {usual}; image skipped",
        f"/3_c.png: it has 64x40 pixels of 8 bits, but 3_a.png {usual}; image skipped",
        "/4_b.png: cannot read the image: the file is empty; image skipped",
        "/other.png: its name has none of _a, _b, _c, so that it belongs to no image; image skipped",
    }


@pytest.mark.parametrize(
    ("keys", "bits", "warns"),
    [("", 8, True), ("bits: 16\n", 16, True), ("window: [0, 4095]\n", 16, True), ("bits: 8\n", 8, True)],
)
def test_bits_of_a_mixed_set(write_set: Callable[..., Path], keys: str, bits: int, warns: bool) -> None:
    data = write_set(lambda path, number: (shallow_grey, deep_grey)[number % 2](path, number), keys)
    index = load_index(read_data_yaml(data), "train")
    assert index.pixels.bits == bits
    (problem,) = index.problems
    assert str(problem) == (
        f"{data}: 2 of the 4 images of 'train' have 16 bits, the others 8; all become {bits}, `bits` here says which"
    )


def test_bits_of_a_set_that_is_all_of_one_depth(write_set: Callable[..., Path]) -> None:
    assert load_index(read_data_yaml(write_set(deep_grey)), "train").pixels.bits == 16
    assert load_index(read_data_yaml(write_set(deep_grey, "bits: 8\n")), "train").pixels.bits == 8
    assert load_index(read_data_yaml(write_set(shallow_grey, "window: [1%, 99%]\n")), "train").pixels.bits == 8


def test_channels_that_differ_are_named(write_set: Callable[..., Path], tmp_path: Path) -> None:
    data = write_set(lambda path, number: (five_channels if number else deep_grey)(path, number), "channels: 5\n")
    index = load_index(read_data_yaml(data), "train")
    (problem,) = index.problems
    assert (problem.kind, Path(problem.where).name, problem.effect) == ("channels differ", "0.png", "image skipped")
    assert problem.what == "it has 1 channels and must have 5 (`channels` in the data.yaml)"
    data.write_text(data.read_text().replace("5", "3"))
    assert len(load_index(read_data_yaml(data), "train")) == 1  # grey is three equal channels


def test_colours_become_grey_with_a_warning(write_set: Callable[..., Path], tmp_path: Path) -> None:
    def write(path: Path, number: int) -> None:
        label(path)
        cv2.imwrite(f"{path}.{('jpg', 'png')[number % 2]}", RANDOM.integers(0, 256, (40, 64, 3)).astype(np.uint8))

    index = load_index(read_data_yaml(write_set(write, "channels: 1\n")), "train")
    assert len(index) == 4
    assert {(problem.kind, problem.is_error) for problem in index.problems} == {("colours made grey", False)}
    (batch,) = make_val_loader(index, 64, 4, fixed_shape=(64, 64))
    assert batch.images.shape == (4, 1, 64, 64)


def test_a_run_keeps_its_pixels_whatever_val_holds_or_the_data_yaml_says_later(
    write_set: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_set(deep_grey, "channels: 1\nwindow: [0, 4095]\n")
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other" / "x.png"), np.full((40, 64), 255, np.uint8))
    (tmp_path / "other" / "x.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data.write_text(data.read_text().replace("val: images", "val: other"))
    config = TrainConfig(data=str(data))
    train, val = load_splits(read_data_yaml(data), config)
    assert val.pixels == train.pixels == PixelSpec(channels=1, bits=16, window=(0, 4095))
    (batch,) = make_val_loader(val, 64, 1)
    assert batch.images.dtype == torch.uint16
    data.write_text(data.read_text().replace("4095", "1000"))
    with caplog.at_level(logging.INFO):
        again, _ = load_splits_again(read_data_yaml(data), config, train.pixels)
    assert again.pixels == train.pixels
    assert f"{data}: its window is not that of the run, which is used" in caplog.messages
    data.write_text(data.read_text().replace("channels: 1", "channels: 3"))
    with pytest.raises(UserError, match=r"channels is 3, but the run was made for 1; correct the data.yaml"):
        load_splits_again(read_data_yaml(data), config, train.pixels)


def test_duplicates_of_n_channels_are_found(write_set: Callable[..., Path], tmp_path: Path) -> None:
    coarse = RANDOM.integers(0, 65536, (6, 8, 5)).astype(np.uint16)
    image = cv2.resize(coarse[..., :3], (96, 80), interpolation=cv2.INTER_CUBIC)
    image = np.dstack((image, image[..., :2])) // 2 + RANDOM.integers(0, 2**14, (80, 96, 1)).astype(np.uint16)
    for name, pixels in (("one", image), ("mirrored", image[:, ::-1])):
        tifffile.imwrite(
            tmp_path / f"{name}.tif", np.ascontiguousarray(pixels), photometric="minisblack", planarconfig="contig"
        )
    (found,) = find_duplicates([tmp_path / "one.tif"], [tmp_path / "mirrored.tif"])
    assert found.how == "the same image (mirrored)"


def test_predict_takes_each_image_of_several_files_once(write_set: Callable[..., Path], tmp_path: Path) -> None:
    write_set(three_lights)
    files = ("_a", "_b", "_c")
    sources = find_sources([str(tmp_path / "images")], files)
    assert [Path(source.address).name for source in sources] == [f"{number}_a.png" for number in range(4)]
    (source,) = find_sources([str(tmp_path / "images" / "1_c.png")], files)
    assert Path(source.address).name == "1_a.png"
    assert len(find_sources([str(tmp_path / "images")])) == 12
    assert len(list(images_of(source))) == 1


def test_lights_in_folders_are_one_source_whatever_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for light in ("top", "left"):
        (tmp_path / "images" / light).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / light / "1.png"), np.full((40, 40), 9, np.uint8))
    monkeypatch.chdir(tmp_path)
    for argument in ("images", str(tmp_path / "images"), "images/left/1.png", "images/../images"):
        [source] = find_sources([argument], ("top/", "left/"))
        assert Path(source.address).resolve() == tmp_path / "images" / "top" / "1.png"
    monkeypatch.chdir(tmp_path / "images" / "left")
    [source] = find_sources(["1.png"], ("top/", "left/"))
    assert Path(source.address).resolve() == tmp_path / "images" / "top" / "1.png"


def test_three_lights_are_not_taken_for_colours(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: images\nnames: [dent]\n")
    spec = read_data_yaml(tmp_path / "data.yaml")
    lights = PixelSpec(files=("_a", "_b", "_c"))
    with pytest.raises(UserError, match=r"are red, green and blue, but those of best\.safetensors three lights"):
        spec.with_pixels(lights, "best.safetensors")
    assert spec.with_pixels(PixelSpec(bits=16), "best.safetensors").pixels.bits == 16
