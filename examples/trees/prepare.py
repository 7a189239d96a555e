"""Cut the four hand-annotated aerial photos of the deepforest wheel into tiles that `yoloyard train` reads.

    pip download --no-deps deepforest==2.1.0
    python prepare.py deepforest-2.1.0-py3-none-any.whl

Shapes: H W pixels of a photo, n boxes of a photo, k boxes of a tile.
"""

import argparse
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

# Whole photos are either for training or for validation, and the photos were taken kilometres apart (the numbers in
# the Yellowstone names are metres east and north): no tree is seen by both sides.
PHOTOS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029", "SOAP_061"),
    "val": ("2019_YELL_2_541000_4977000_image_crop",),
}
TILE = 320  # pixels: eight average trees wide, at the photos' own resolution of 0.1 m
OVERLAP = 80  # pixels: all but the largest trees are whole in at least one tile
VISIBLE = 0.4  # a box that a tile's border cuts is kept if this part of its area remains


def read_boxes(xml: bytes) -> np.ndarray:
    """Boxes (n, 4) xyxy in pixels from Pascal VOC, which counts pixels from 1 and includes the last one."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = ElementTree.fromstring(xml).iter("object")
    boxes = [[float(thing.findtext(f"bndbox/{corner}", "nan")) for corner in corners] for thing in objects]
    return np.array(boxes, np.float64).reshape(-1, 4) - [1, 1, 0, 0]


def tile_starts(length: int, tile: int) -> list[int]:
    """Evenly spaced positions of tiles that cover `length` pixels with at least OVERLAP in common."""
    count = max(int(np.ceil((length - OVERLAP) / (tile - OVERLAP))), 1)
    return np.linspace(0, max(length - tile, 0), count).round().astype(int).tolist()


def boxes_of_tile(boxes: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """The part of `boxes` (n, 4) that lies in the tile at (left, top): (k, 4) xyxy in pixels of the tile."""
    cut = (boxes - [left, top, left, top]).clip(0, [width, height, width, height])
    area, area_cut = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, cut))
    return cut[area_cut >= VISIBLE * area]


def label_lines(boxes: np.ndarray, width: int, height: int) -> str:
    """YOLO rows, `class x_centre y_centre width height` as fractions of the tile; there is one class, tree."""
    rows = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    rows /= [width, height, width, height]
    return "".join("0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*row) for row in rows)


def write_split(wheel: zipfile.ZipFile, split: str, out: Path, whole: bool) -> tuple[int, int]:
    """Write the tiles of one split below `out`, or its `whole` photos; returns how many images and boxes there are."""
    images, labels = out / "images" / split, out / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    num_tiles = num_boxes = 0
    for photo in PHOTOS[split]:
        pixels = cv2.imdecode(np.frombuffer(wheel.read(f"deepforest/data/{photo}.png"), np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise SystemExit(f"{photo}.png in {wheel.filename} cannot be decoded: fetch the wheel again")
        boxes = read_boxes(wheel.read(f"deepforest/data/{photo}.xml"))
        height, width = pixels.shape[:2] if whole else (TILE, TILE)
        for top in tile_starts(pixels.shape[0], height):
            for left in tile_starts(pixels.shape[1], width):
                name = f"{photo}_{top:04d}_{left:04d}"
                inside = boxes_of_tile(boxes, left, top, width, height)
                part = pixels[top : top + height, left : left + width]
                (images / f"{name}.png").write_bytes(cv2.imencode(".png", part)[1].tobytes())
                (labels / f"{name}.txt").write_text(label_lines(inside, width, height), encoding="utf-8")
                num_tiles, num_boxes = num_tiles + 1, num_boxes + len(inside)
    return num_tiles, num_boxes


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the annotated photos of the deepforest wheel into tiles.")
    parser.add_argument("wheel", type=Path, help="deepforest-2.1.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=Path("trees"), help="new folder for tiles and labels")
    parser.add_argument("--whole", action="store_true", help="write the photos as they are, not cut into tiles")
    arguments = parser.parse_args()
    if not arguments.wheel.is_file():
        parser.error(f"no file {arguments.wheel}: fetch it with `pip download --no-deps deepforest==2.1.0`")
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already: remove it, or name another folder with --out")
    data = arguments.out / "data.yaml"
    try:
        with zipfile.ZipFile(arguments.wheel) as wheel:
            for split in PHOTOS:
                num_tiles, num_boxes = write_split(wheel, split, arguments.out, arguments.whole)
                print(f"{split}: {num_tiles} {'photos' if arguments.whole else 'tiles'}, {num_boxes} boxes")
        data.write_text("train: images/train\nval: images/val\nnames:\n  0: tree\n", encoding="utf-8")
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        parser.error(f"{arguments.wheel} is not the wheel of deepforest 2.1.0 ({error}): fetch it again")
    except OSError as error:
        parser.error(f"{arguments.out}: {error.strerror or error}; remove it before the next try")
    size = f"--tile {TILE}" if arguments.whole else f"--imgsz {TILE}"
    print(f"next: yoloyard train --model yolo11n --data {data} {size} --epochs 100")


if __name__ == "__main__":
    main()
