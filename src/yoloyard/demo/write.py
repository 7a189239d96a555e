"""The demo set: a generated inspection line in the standard layout, written once and then kept."""

import json
from pathlib import Path

import numpy as np

from yoloyard.common.errors import UserError
from yoloyard.common.files import restore_whole_folder, write_whole_folder
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.demo.drawing import NAMES, TRAINING_SURFACES, VALIDATION_ONLY_SURFACES, DrawnImage, draw_image

VERSION = 1  # raise it with every change to the images, so that older sets are replaced
_MARKER = "generated.json"
_SPLITS = ("train", "val")
JPEG_QUALITY = 92
_FLAWLESS_EVERY = 5  # one image in five has no defect
_NEW_SURFACE_EVERY = 4  # one validation image in four shows a surface that training never saw


def write_demo(folder: Path, seed: int = 0, train: int = 400, val: int = 100, size: int = 320) -> Path:
    """Write the demo set into `folder` and return its data.yaml. If `folder` holds the same set already, it is kept.

    `train` and `val` are numbers of images of `size` x `size` pixels. The folder is written whole or not at all.
    Raises UserError if `folder` holds something that is not a demo set, or cannot be written.
    """
    data = folder / "data.yaml"
    recipe = {"version": VERSION, "seed": seed, "train": train, "val": val, "size": size}
    restore_whole_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise UserError(f"{folder} holds other files: name an empty or a new folder for the demo set")
    if not _is_complete(folder, recipe):
        write_whole_folder(folder, lambda temporary: _write_set(temporary, recipe))
    return data


def demo_image(seed: int, split: str, index: int, size: int = 320) -> DrawnImage:
    """Image `index` of `split` ("train" or "val"): it depends on these arguments alone."""
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    new = split == "val" and index % _NEW_SURFACE_EVERY == 0
    surfaces = VALIDATION_ONLY_SURFACES if new else TRAINING_SURFACES
    surface = surfaces[int(rng.integers(len(surfaces)))]
    return draw_image(rng, surface, defective=index % _FLAWLESS_EVERY != 0, size=size)


def _is_complete(folder: Path, recipe: dict[str, int]) -> bool:
    marker = folder / _MARKER
    return (
        marker.is_file()
        and marker.read_text(encoding="utf-8") == json.dumps(recipe)
        and (folder / "data.yaml").is_file()
        and all(
            len(list((folder / kind / split).glob(pattern))) == recipe[split]
            for kind, pattern in (("images", "*.jpg"), ("labels", "*.txt"))
            for split in _SPLITS
        )
    )


def _write_set(folder: Path, recipe: dict[str, int]) -> None:
    for split in _SPLITS:
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(recipe[split]):
            image = demo_image(recipe["seed"], split, index, recipe["size"])
            (images / f"{index:04d}.jpg").write_bytes(encode_jpeg(image.pixels, JPEG_QUALITY))
            (labels / f"{index:04d}.txt").write_text(_label_lines(image), encoding="utf-8")
    names = "".join(f"  {label}: {name}\n" for label, name in enumerate(NAMES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")
    (folder / _MARKER).write_text(json.dumps(recipe), encoding="utf-8")


def _label_lines(image: DrawnImage) -> str:
    """YOLO rows: class, centre, width and height as fractions of the image."""
    boxes, size = image.boxes_xyxy.astype(np.float64), image.pixels.shape[0]
    rows = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / size
    pairs = zip(image.labels.tolist(), rows.tolist(), strict=True)
    return "".join("{} {:.6f} {:.6f} {:.6f} {:.6f}\n".format(label, *row) for label, row in pairs)
