"""Weights files of MultimediaTechLab's YOLOv9: plain state dicts, and checkpoints of its training.

Only here are that project's layer numbers and parameter names known: `<number>.<names>`, where the number is a block's
place in the published table (`Detector.blocks`). A released file holds tensors alone: no class names, no settings.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UserError, printable
from yoloyard.common.lineage import step
from yoloyard.models import registry
from yoloyard.models.blocks import SPPF
from yoloyard.models.detector import Detector
from yoloyard.models.heads.anchor_free import BINS
from yoloyard.models.importing.inert_pickle import TensorView, as_mapping, as_tensor
from yoloyard.models.importing.torch_files import Checkpoint

LICENCE = "MIT"  # of the project, which states no separate one for its weights
PREFIXES = ("ema.model.", "model.model.")  # in checkpoints of a training: averaged weights, the last ones
SIZES: dict[tuple[int, ...], str] = {
    (16, 32): "t",
    (32, 64): "s",
    (32, 128): "m",
    (64, 128): "c",
}  # by rows of the first and the third layer
HEAD_LAYER = 22
CLASSES = "{}.heads.0.class_conv.2.weight"  # of the head that is this layer
CLASSES_OF_A_HEAD = re.compile(r"\d+\.heads\.0\.class_conv\.2\.weight$")
CONSTANT = re.compile(r"\.anc2vec\.anc2vec\.weight$")  # the numbers 0 .. 15
# Own names within a block: the published ones. They are replaced one after the other.
RENAMED = (
    (r"\.0\.blocks\.", ".0.bottleneck."),
    (r"\.0\.conv_in\.", ".0.conv1."),
    (r"\.0\.conv_skip\.", ".0.conv2."),
    (r"\.0\.conv_out\.", ".0.conv3."),
    (r"^blocks\.0\.", "conv2."),
    (r"^blocks\.1\.", "conv3."),
    (r"^conv_in\.", "conv1."),
    (r"^conv_out\.", "conv4."),
    (r"^(?:auxiliary_)?box_branches\.(\d)\.", r"heads.\1.anchor_conv."),
    (r"^(?:auxiliary_)?class_branches\.(\d)\.", r"heads.\1.class_conv."),
)
COCO_NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
]  # fmt: skip


def tensors_of(content: Mapping[Any, Any]) -> dict[str, TensorView]:
    """The tensors of such a file's `content` by their published names, averaged ones first; none of another file."""
    states = [content]
    if "state_dict" in content:
        state = as_mapping(content["state_dict"])
        states = [
            {name.removeprefix(prefix): node for name, node in state.items() if str(name).startswith(prefix)}
            for prefix in PREFIXES
        ]
    for state in states:
        tensors = {name: tensor for name, node in state.items() if (tensor := as_tensor(node)) and type(name) is str}
        if "0.conv.weight" in tensors and CLASSES.format(HEAD_LAYER) in tensors:
            return {name: tensor for name, tensor in tensors.items() if not CONSTANT.search(name)}
    return {}


def read_state(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorView], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and metadata as `importers.read_checkpoint` gives them, of `tensors_of` the file.

    Where the file has no auxiliary branch, `model_arguments` says so. Classes have COCO's names where there are 80,
    else `class_0` and so on. Raises UserError if the names and shapes are of no YOLOv9.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    rows = tuple(shapes.get(name, (0,))[0] for name in ("0.conv.weight", "2.conv1.conv.weight"))
    size, first, last = SIZES.get(rows), shapes["0.conv.weight"], shapes[CLASSES.format(HEAD_LAYER)]
    if size is None or len(first) != 4 or len(last) != 4 or min(*first, *last) < 1:
        raise UserError(f"{path} holds a YOLOv9 of none of the sizes t, s, m, c, which can't be imported.")
    arguments: dict[str, Any] = {"num_classes": last[0], "channels": first[1], "class_width": last[1]}
    layers = [int(name.split(".")[0]) for name in shapes if CLASSES_OF_A_HEAD.match(name)]
    arguments["auxiliary"] = max(layers) > HEAD_LAYER
    if arguments["auxiliary"]:
        auxiliary = shapes[CLASSES.format(max(layers))]
        arguments["auxiliary_class_width"] = auxiliary[1] if len(auxiliary) == 4 else None  # the shapes tell below
    with torch.device("meta"):
        detector = registry.build(f"yolov9{size}", **arguments)
    state = {}
    own_state, names = detector.state_dict(), names_in_files(detector)
    for own_name, name in names.items():
        if name not in shapes and name.endswith("num_batches_tracked"):
            state[own_name] = torch.tensor(0)
        elif shapes.get(name) != own_state[own_name].shape:
            raise UserError(f"{path} can't be imported: of a yolov9{size} {name} is missing or has another shape.")
        else:
            numbers = checkpoint.read(tensors[name])
            state[own_name] = numbers.float() if numbers.is_floating_point() else numbers
    if unknown := shapes.keys() - set(names.values()):
        raise UserError(f"{path} can't be imported: a yolov9{size} has no {printable(min(unknown))}.")
    state["head.projection"] = torch.arange(BINS, dtype=torch.float32).view(own_state["head.projection"].shape)
    imported = step("imported", path.name, file_sha256(path), LICENCE, program=detector.project)
    return state, {
        "model": f"yolov9{size}",
        "model_arguments": arguments,
        "names": COCO_NAMES if len(COCO_NAMES) == last[0] else [f"class_{number}" for number in range(last[0])],
        "channels": first[1],
        "imgsz": 20 * max(detector.strides),
        "licence": LICENCE,
        "versions": {detector.project: "unknown"},
        "history": [imported],
    }


def names_in_files(detector: Detector) -> dict[str, str]:
    """For all of the detector's state but the constant, the names in files.

    There the auxiliary branches of the head are a layer of their own, behind all others.
    """
    own_names = {id(module): name for name, module in detector.named_modules()}
    names = {}
    for number, block in enumerate(detector.blocks):
        for own in block.state_dict() if block is not None else ():
            layer = len(detector.blocks) if own.startswith("auxiliary_") else number
            published = own.replace("conv_out", "conv5") if isinstance(block, SPPF) else own
            for pattern, replacement in RENAMED:
                published = re.sub(pattern, replacement, published)
            names[f"{own_names[id(block)]}.{own}"] = f"{layer}.{published}"
    del names["head.projection"]
    return names
