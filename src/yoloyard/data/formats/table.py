"""The formats of labels that are read, and that `data convert --to` writes: each has a file here, and a line below."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yoloyard.data.formats import coco_json, voc_xml, yolo_txt
from yoloyard.data.formats.labels import LabelledImage, Labels, SplitLabels

IMAGE_FOLDERS = ("images", "JPEGImages")  # of all formats


@dataclass(frozen=True)
class ImageFormat:
    """A format with a file for each image, which is found by the image's name."""

    suffix: str  # of its files, in small letters
    # The labels of N files (path, content), for class names, images (height, width), numbers of keypoints in a row.
    parse: Callable[[Sequence[tuple[Path, bytes]], Sequence[str], Sequence[tuple[int, int]], int], list[Labels]]
    format: Callable[[LabelledImage, Sequence[str]], str]  # the file of an image, for class names
    # Labels are looked for where the last of these folders in an image's path is replaced by one of those, best first.
    image_folders: tuple[str, ...] = IMAGE_FOLDERS[:1]
    label_folders: tuple[str, ...] = ("labels",)
    written_to: tuple[str, str] = ("images", "labels")  # folders of a data set in this format
    list_folder: str = ""  # where lists of a split's images are written too, if anywhere
    keeps_ignore: bool = True  # whether it can say that a box is to be ignored
    mentioned_classes: Callable[[bytes], list[str]] | None = None  # the class names in a file, for a message


@dataclass(frozen=True)
class SplitFormat:
    """A format with a file for all images of a split, which a data.yaml names."""

    suffix: str
    read: Callable[[Path], bytes]
    file_names: Callable[[Path, bytes], list[str]]  # all that a file mentions, found without parsing it
    class_names: Callable[[Path, bytes], list[str]]
    parse: Callable[[Path, bytes, Sequence[str]], SplitLabels]  # for class names
    format: Callable[[Iterable[LabelledImage], Sequence[tuple[int, str]]], str]  # for ids and names of classes
    written_to: tuple[str, str] = ("images", "annotations")
    keeps_ignore: bool = True


# Of two label files of an image, the one of the first format counts.
FORMATS: dict[str, ImageFormat | SplitFormat] = {
    "yolo": ImageFormat(".txt", yolo_txt.parse_yolo_files, yolo_txt.format_yolo, keeps_ignore=False),
    "coco": SplitFormat(
        ".json",
        read=coco_json.read_coco_file,
        file_names=coco_json.file_names_in,
        class_names=coco_json.category_names,
        parse=coco_json.parse_coco,
        format=coco_json.format_coco,
    ),
    "voc": ImageFormat(
        ".xml",
        parse=voc_xml.parse_voc_files,
        format=voc_xml.format_voc,
        image_folders=IMAGE_FOLDERS,
        label_folders=("labels", "Annotations", "annotations"),
        written_to=("JPEGImages", "Annotations"),
        list_folder="ImageSets/Main",
        mentioned_classes=voc_xml.mentioned_classes,
    ),
}


def image_formats() -> list[ImageFormat]:
    """The formats with a file for each image."""
    return [each for each in FORMATS.values() if isinstance(each, ImageFormat)]


def label_suffixes() -> frozenset[str]:
    """The suffixes of label files of images, in small letters."""
    return frozenset(each.suffix for each in image_formats())


def parse_label_files(
    files: Sequence[tuple[Path, bytes]], names: Sequence[str], sizes: Sequence[tuple[int, int]], keypoint_values: int
) -> list[Labels]:
    """The labels of N files, each given with its content; see `ImageFormat.parse`."""
    labels: dict[int, Labels] = {}
    for form in image_formats():
        own = [number for number, (path, _) in enumerate(files) if path.suffix.lower() == form.suffix]
        parsed = form.parse([files[each] for each in own], names, [sizes[each] for each in own], keypoint_values)
        labels |= zip(own, parsed, strict=True)
    return [labels[number] for number in range(len(files))]
