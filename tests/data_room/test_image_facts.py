"""What is said of image files, and when it is looked at again."""

import dataclasses
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from yoloyard.data.index import image_facts as images
from yoloyard.data.index.image_facts import examine

NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    seen: list[Path] = []
    decode = images.decode_thumbnail

    def counting(path: Path, *rest: object) -> object:
        seen.append(path)
        return decode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "decode_thumbnail", counting)
    return seen


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five images in two folders."""
    paths = [tmp_path / folder / f"{number}.png" for folder in ("a", "b") for number in range(3)][:5]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), NOISE[number:])
    return paths


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_size_digest_and_thumbnail(tmp_path: Path, suffix: str) -> None:
    image = cv2.resize(NOISE[:4, :6], (600, 400))
    paths = [tmp_path / f"{name}{suffix}" for name in ("one", "same", "small")]
    cv2.imwrite(str(paths[0]), image)
    shutil.copy(paths[0], paths[1])
    cv2.imwrite(str(paths[2]), cv2.resize(image, (300, 200)))
    one, same, small = examine(paths)
    assert (one.height, one.width, one.problem) == (400, 600, None)
    assert one.digest == same.digest != small.digest
    assert one.thumbnail.shape == (32, 32)
    assert one.thumbnail.std() > 20
    assert np.abs(one.thumbnail.astype(int) - small.thumbnail).max() < 12


def test_damage_that_only_decoding_shows_is_found(tmp_path: Path) -> None:
    file = tmp_path / "damaged.png"
    content = bytearray(cv2.imencode(".png", NOISE)[1].tobytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    (facts,) = examine([file])
    assert facts.problem is not None
    assert facts.problem.kind == "image unreadable"
    assert facts.problem.where == str(file)


def test_a_second_look_decodes_only_what_has_changed(files: list[Path], tmp_path: Path, decoded: list[Path]) -> None:
    first = examine(files)
    again = examine(files)
    assert sorted(decoded) == files
    assert [(facts.height, facts.digest) for facts in again] == [(facts.height, facts.digest) for facts in first]
    assert all((one.thumbnail == other.thumbnail).all() for one, other in zip(first, again, strict=True))
    cv2.imwrite(str(files[2]), NOISE[50:])
    assert examine(files)[2].height == 150
    assert sorted(decoded) == sorted([*files, files[2]])


def test_lists_that_share_a_folder_share_what_is_known(files: list[Path], tmp_path: Path, decoded: list[Path]) -> None:
    for _ in range(2):
        examine(files[:2])
        examine(files[2:3])
    assert sorted(decoded) == files[:3]


def test_problems_are_kept_but_not_those_of_permissions(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files[0].write_bytes(b"nothing")
    read = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path == files[1]:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    problems = [facts.problem for facts in examine(files)]
    assert "Permission denied" in str(problems[1])
    monkeypatch.setattr(Path, "read_bytes", read)
    again = [facts.problem for facts in examine(files)]
    assert again == [problems[0], None, None, None, None]
    assert str(again[0]) == f"{files[0]}: cannot read the image: not an image that can be decoded; image skipped"


@pytest.mark.parametrize("spoil", ["cut", "nonsense", "not a folder"])
def test_a_cache_that_cannot_be_used_is_done_without(files: list[Path], tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "cache/images"
    if spoil == "not a folder":
        folder.parent.touch()
    else:
        examine(files)
        (file,) = folder.iterdir()
        file.write_bytes(file.read_bytes()[:-200] if spoil == "cut" else b"nonsense")
    assert [facts.height for facts in examine(files)] == [200, 199, 198, 197, 196]


def test_old_caches_are_forgotten(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "IMAGE_FACTS", dataclasses.replace(images.IMAGE_FACTS, kept=1))
    examine(files[:1])
    (old,) = (tmp_path / "cache/images").iterdir()
    os.utime(old, (0, 0))
    examine(files[4:])
    (new,) = (tmp_path / "cache/images").iterdir()
    assert new != old


def test_a_long_look_is_announced(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(images, "TOLD_FROM_IMAGES", 5)
    for _ in range(2):
        examine(files, "train")
    assert said == ["examining 5 images of train for the first time"]
