"""Duplicates are found whatever was done to them; other shots of the same scene are none."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.data.audit import duplicates as duplicates_module
from yoloyard.data.audit.duplicates import ORIENTATIONS, Duplicate, find_duplicates, turned
from yoloyard.data.pixels.decode import decode_image
from yoloyard.data.pixels.lights import files_of
from yoloyard.demo.write import demo_image

Change = Callable[[np.ndarray], np.ndarray]
SIZE = 256


def write(folder: Path, images: list[np.ndarray], quality: int | None) -> list[Path]:
    """Save RGB images as JPEG of that quality, or as PNG."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:02}.{'jpg' if quality else 'png'}" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality] if quality else []
        cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]), options)
    return paths


def noisy(image: np.ndarray, seed: int, sigma: float = 3.0, exposure: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image * exposure + noise, 0, 255).astype(np.uint8)


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor)


@pytest.fixture(scope="module")
def parts() -> list[np.ndarray]:
    """Twelve different parts of an inspection line, with the noise of a camera."""
    return [noisy(demo_image(0, "train", number, SIZE).pixels, number) for number in range(12)]


@pytest.fixture(scope="module")
def train(parts: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("duplicates") / "train", parts, 92)


@pytest.mark.parametrize("quality", [95, 75, 40])
@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda image: image, "encoded again"),
        (lambda image: scaled(image, 0.75), "resized"),
        (lambda image: scaled(image, 2), "resized"),
        (np.fliplr, "mirrored"),
        (np.flipud, "upside down"),
        (lambda image: scaled(np.fliplr(image), 1.5), "mirrored, resized"),
    ],
)
def test_duplicates_are_found(train: list[Path], tmp_path: Path, change: Change, how: str, quality: int) -> None:
    val = write(tmp_path / "val", [change(decode_image(path)) for path in train], quality)
    expected = [Duplicate(number, number, f"the same image ({how})") for number in range(len(train))]
    assert find_duplicates(train, val) == expected


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_orientation_is_told(train: list[Path], tmp_path: Path, orientation: tuple[bool, int]) -> None:
    image = decode_image(train[5])[:200]
    (one,) = write(tmp_path / "one", [image], None)
    (other,) = write(tmp_path / "other", [turned(image, orientation)], 90)
    (duplicate,) = find_duplicates([*train, one], [other])
    assert duplicate.first == len(train)
    words = ORIENTATIONS[orientation]
    assert duplicate.how.startswith(f"the same image ({words or 'encoded again'}")


def test_the_same_bytes_are_told_apart_from_the_same_image(train: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "renamed.jpg"
    other.write_bytes(train[3].read_bytes())
    assert find_duplicates(train, [other]) == [Duplicate(3, 0, "the same bytes")]


def test_other_parts_of_the_line_are_no_duplicates(train: list[Path], tmp_path: Path) -> None:
    others = [noisy(demo_image(0, "val", number, SIZE).pixels, number) for number in range(30)]
    assert find_duplicates(train, write(tmp_path / "val", others, 92)) == []


@pytest.mark.parametrize("quality", [None, 95, 75, 50])
@pytest.mark.parametrize("what", ["nothing", "exposure", "position", "defect"])
def test_other_shots_of_the_same_scene_are_no_duplicates(tmp_path: Path, what: str, quality: int | None) -> None:
    scene = demo_image(0, "train", 3, SIZE).pixels
    second = scene.copy()
    if what == "position":
        second[64:192, 64:192] = scene[63:191, 62:190]
    if what == "defect":
        cv2.circle(second, (100, 100), 3, (60, 60, 60), -1)
    exposure = 1.02 if what == "exposure" else 1.0
    train = write(tmp_path / "train", [noisy(scene, seed, 2) for seed in range(4)], quality)
    val = write(tmp_path / "val", [noisy(second, seed, 2, exposure) for seed in range(10, 14)], quality)
    assert find_duplicates(train, val) == []


def test_empty_images_prove_nothing(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [np.full((200, 200, 3), 90, np.uint8)], 90)
    val = write(tmp_path / "val", [np.full((100, 100, 3), 90, np.uint8)], 90)
    assert find_duplicates(train, val) == []


def test_unusable_images_and_empty_lists_are_passed_over(train: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    assert find_duplicates([broken, *train], [broken]) == []
    assert find_duplicates([], train) == []
    assert find_duplicates(train, []) == []


def test_a_file_that_is_removed_meanwhile_is_no_duplicate(
    parts: list[np.ndarray], train: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (val,) = write(tmp_path / "val", parts[:1], 75)
    assert len(find_duplicates(train, [val])) == 1

    def decode_and_lose(path: Path) -> np.ndarray:
        image = decode_image(path)
        if path == val:
            path.unlink()
        return image

    monkeypatch.setattr(duplicates_module, "decode_image", decode_and_lose)
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "empty"))  # so that they are compared again
    assert find_duplicates(train, [val]) == []


def test_images_of_several_lights_are_duplicates_only_if_all_files_are(parts: list[np.ndarray], tmp_path: Path) -> None:
    dark, lights = noisy(np.full_like(parts[0], 8), 0, sigma=1.0), ("_dark", "_side")

    def lit(folder: str, sides: list[np.ndarray], quality: int | None = None) -> list[Path]:
        images = [tmp_path / folder / f"{number}_dark.png" for number in range(len(sides))]
        images[0].parent.mkdir()
        for path, side in zip(images, sides, strict=True):
            for file, image in zip(files_of(path, lights), (dark, side), strict=True):
                file.write_bytes(write(tmp_path / f"{folder}-{file.stem}", [image], quality)[0].read_bytes())
        return images

    train = lit("train", parts[:4])
    others = lit("others", parts[4:6])  # each first file has the bytes of all first files of train
    assert find_duplicates(train, others, files=lights) == []
    assert find_duplicates(train, lit("same", parts[2:3]), files=lights) == [Duplicate(2, 0, "the same bytes")]
    assert find_duplicates(train, lit("again", parts[2:3], 90), files=lights) == [
        Duplicate(2, 0, "the same image (encoded again)")
    ]


def test_what_has_not_changed_is_not_compared_again(
    train: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = tmp_path / "val.jpg"
    val.write_bytes(train[2].read_bytes())
    first = find_duplicates(train, [val])
    monkeypatch.setattr(duplicates_module, "_nearest", lambda *_: pytest.fail("compared"))
    assert find_duplicates(train, [val]) == first == [Duplicate(2, 0, "the same bytes")]
