"""`yoloyard data check` finds whatever is wrong with its file and line; training leaves it out, or stops."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands import TINY, Command
from yoloyard.data.index import image_facts as images
from yoloyard.data.pixels.decode import decode_image


def rewrite(label: Path, *rows: str) -> None:
    label.write_text("".join(f"{row}\n" for row in rows))


def spoil(data: Path) -> dict[str, str]:
    """Make one mistake of each kind; gives what must be said of it, by kind."""
    root = data.parent
    train, labels, val = root / "images/train", root / "labels/train", root / "images/val"
    image = (train / "0000.jpg").read_bytes()
    (train / "0000.jpg").write_bytes(image[: len(image) // 2])
    cv2.imwrite(str(train / "0001.jpg"), np.zeros((40, 8, 3), np.uint8))
    good = "0 0.5 0.5 0.1 0.1"
    rewrite(labels / "0002.txt", good, "0 0.5 0.5 1.5 0.1")
    rewrite(labels / "0003.txt", good, "", "0 0.5 0.5 0.1 0")
    rewrite(labels / "0004.txt", "9 0.5 0.5 0.1 0.1")
    rewrite(labels / "0005.txt", good, "1 0.5 0.5 0.1 0.1", good)
    rewrite(labels / "0006.txt", "0 0.5 0.5 0.1")
    (labels / "0007.txt").write_bytes(b"\xff\xfe0")
    (root / "labels/val/9999.txt").write_text(good)
    (labels / "0013.txt").unlink()
    shutil.copy(train / "0008.jpg", val / "0000.jpg")
    mirrored = decode_image(train / "0009.jpg")[:, ::-1, ::-1]  # the last one to BGR
    cv2.imwrite(
        str(val / "0001.jpg"),
        cv2.resize(np.ascontiguousarray(mirrored), None, fx=1.5, fy=1.5),
        [cv2.IMWRITE_JPEG_QUALITY, 85],
    )
    (root / "list.txt").write_text("images/train/gone.jpg\n")
    text = data.read_text().replace("train: images/train", "train: [images/train, list.txt]")
    data.write_text(text + "test: images/nowhere\n")
    line = len(text.splitlines()) + 1
    return {
        "image missing": f"{root}/list.txt:1: there is no image {train}/gone.jpg",
        "image unreadable": f"{train}/0000.jpg: cannot read the image: the file is cut off",
        "image too small": f"{train}/0001.jpg: 8x40 pixels",
        "label outside the image": f"{labels}/0002.txt:2: 1.5 is outside 0..1",
        "box without area": f"{labels}/0003.txt:3: the box has no area",
        "class unknown": f"{labels}/0004.txt:1: class 9 is not one of 0 to 4",
        "label twice": f"{labels}/0005.txt:3: ",
        "label malformed": f"{labels}/0006.txt:1: 4 numbers",
        "label unreadable": f"{labels}/0007.txt: not a UTF-8 text file",
        "label without image": f"{root}/labels/val/9999.txt: there is no image for it",
        "image without label": f"{train}/0013.jpg: it has no label file",
        "duplicate across splits": f"{val}/0000.jpg: the same bytes as {train}/0008.jpg of train",
        "split unusable": f"{data}:{line}: test is {root}/images/nowhere, which does not exist",
    }


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")])


def test_every_mistake_is_listed_and_nothing_is_written_beside_the_data(data: Path, yoloyard: Command) -> None:
    expected = spoil(data)
    before = listing(data.parent)
    code, out, err = yoloyard("data", "check", data)
    assert (code, err) == (1, "")
    assert listing(data.parent) == before
    page = Path("runs/check/check.html").read_text()
    for kind, line in expected.items():
        assert kind in out
        assert line in page, kind
    assert f"{data.parent}/images/val/0001.jpg: the same image (mirrored, resized) as" in page
    assert page.count("<img ") >= 4  # the pairs, and samples with their boxes
    assert "11 errors, 3 warnings;" in out  # two duplicates


def test_a_good_set_passes(data: Path, yoloyard: Command) -> None:
    code, out, err = yoloyard("data", "check", data, "--name", "good")
    assert (code, err) == (0, "")
    assert "0 errors, 0 warnings" in out
    assert "Nothing is wrong" in Path("runs/good/check.html").read_text()


def test_warnings_alone_pass(data: Path, yoloyard: Command) -> None:
    rewrite(data.parent / "labels/train/0000.txt", "0 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 0.1")
    code, out, _ = yoloyard("data", "check", data)
    assert code == 0
    assert "0 errors, 1 warning;" in out


def test_the_page_names_the_smallest_boxes_without_a_place(data: Path, yoloyard: Command) -> None:
    rows = [f"0 {0.003 + number / 110:.4f} 0.0031 0.003 0.003" for number in range(105)]
    rewrite(data.parent / "labels/train/0000.txt", *rows)
    yoloyard("data", "check", data)
    page = Path("runs/check/check.html").read_text()
    (all_boxes,), (more,) = (re.findall(each, page) for each in (r"(\d+) of \d+ boxes", r"and (\d+) more: --json"))
    assert page.count(" pixels of the input, ") == int(all_boxes) - int(more) == 100


def test_empty_splits_are_in_the_table(data: Path, yoloyard: Command) -> None:
    for image in (data.parent / "images/train").iterdir():
        image.unlink()
    for label in (data.parent / "labels/val").iterdir():
        rewrite(label, "0 5 5 5 5")
    code, _, err = yoloyard("data", "check", data)
    assert (code, err) == (1, "")
    page = Path("runs/check/check.html").read_text()
    assert f"{data}:1: no images for &#39;train&#39;" in page
    assert f"{data}:2: none of the 6 images of &#39;val&#39; can be used" in page
    assert page.count("5 is outside 0..1") > 6


def test_wrong_usage_is_told_apart(data: Path, yoloyard: Command) -> None:
    code, _, err = yoloyard("data", "check", data.with_name("no.yaml"))
    assert code == 2
    assert "no.yaml" in err


def test_what_has_not_changed_is_decoded_once(data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    decode = images.decode_thumbnail

    def counting(path: Path, *rest: object) -> object:
        decoded.append(path)
        return decode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "decode_thumbnail", counting)
    assert yoloyard("data", "check", data)[0] == 0
    assert len(decoded) == 20
    rewrite(data.parent / "labels/train/0000.txt", "0 0.5 0.5 0.1 0.1")
    assert yoloyard("data", "check", data)[0] == 0
    assert len(decoded) == 20
    cv2.imwrite(str(data.parent / "images/val/0000.jpg"), np.random.default_rng(0).integers(0, 256, (96, 96, 3)))
    assert yoloyard("data", "check", data)[0] == 0
    assert len(decoded) == 21


def test_training_names_what_it_leaves_out_and_strict_stops(data: Path, yoloyard: Command) -> None:
    label = data.parent / "labels/train/0002.txt"
    rewrite(label, "9 0.5 0.5 0.1 0.1")
    shutil.copy(data.parent / "images/train/0003.jpg", data.parent / "images/val/0000.jpg")
    words = ["train", *TINY, "--data", data, "--epochs", 1]
    code, out, err = yoloyard(*words)
    assert (code, err) == (0, "")
    assert "train: 1 of 14 images can't be used" in out
    assert f"{label}:1: class 9" in out
    assert "val: duplicate across splits, 1 time:" in out
    code, out, err = yoloyard(*words, "--strict")
    assert code == 1
    assert f"{label}:1: class 9" in out
    assert "--strict: the data have 2 errors" in err


def test_training_stops_where_too_much_cannot_be_used(data: Path, yoloyard: Command) -> None:
    for number in (2, 3):
        rewrite(data.parent / f"labels/train/000{number}.txt", "9 0.5 0.5 0.1 0.1")
    code, out, err = yoloyard("train", *TINY, "--data", data, "--epochs", 1)
    assert code == 1
    assert "0003.txt:1: class 9" in out
    assert "2 of the 14 images of 'train' can't be used, more than 10%" in err
    assert f"yoloyard data check {data}" in err
