"""The Open Inference Protocol V2 over HTTP, with its binary extension: tensors in, tensors out."""

import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from yoloyard.common.image_size import shape_of, size_text
from yoloyard.runtimes.metadata import INPUT
from yoloyard.serving.served import Served

LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON before binary tensors
FLOAT_BYTES, JSON_BYTES = 4, 2**20
LISTS = 2**18  # and objects in a JSON: in memory each takes 30 times its bytes


@dataclass(frozen=True)
class Asked:
    """A request: images float32 (B, channels, H, W), and which outputs it wants, each binary or not."""

    images: np.ndarray
    outputs: Mapping[str, bool]
    request_id: str | None


def description(served: Served) -> dict[str, Any]:
    """The metadata of a model, with `tile` where its input is a tile of an image that the client must cut."""
    height, width = served.model.network.fixed_shape or (-1, -1)
    outputs = served.output_shapes.items()
    tile = {"tile": served.model.tile.as_dict()} if served.model.tile else {}
    return {
        "name": served.name,
        "platform": served.platform,
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, served.model.pixels.channels, height, width]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": shape} for name, shape in outputs],
        **tile,
    }


def most_bytes(served: Served) -> int:
    """Of a request to this model: its largest batch as binary tensor."""
    return (
        served.max_batch * served.model.pixels.channels * math.prod(shape_of(served.model.imgsz)) * FLOAT_BYTES
        + JSON_BYTES
    )


def read(body: bytes, length: str | None, served: Served) -> Asked:
    """What a body asks for; `length` is the header LENGTH. Raises HTTPException 400 that says what is wrong."""
    is_length = length is None or (length.isdecimal() and len(length) < 13 and int(length) <= len(body))
    _check(is_length, f"{LENGTH} is no length in it")
    end = int(length) if length else len(body)
    _check(body.count(b"[", 0, end) + body.count(b"{", 0, end) <= LISTS, f"the JSON has more than {LISTS:,} lists")
    try:
        head = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is no JSON (of a binary request: its first part)") from error
    _check(isinstance(head, dict), "the body must be a JSON object with `inputs`")
    _check(isinstance(head.get("id", ""), str), "`id` must be a text")
    [tensor] = _list(head, "inputs", 1)
    _check(tensor.get("name") == INPUT, f"the input is named `{INPUT}`")
    _check(tensor.get("datatype") == "FP32", f"`{INPUT}` must be FP32")
    shape = _shape(tensor.get("shape"), served)
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        images = np.asarray(_numbers(tensor.get("data")))
    else:
        _check(size == len(body) - end, f"{len(body) - end} bytes follow the JSON, which binary_data_size must say")
        _check(size % FLOAT_BYTES == 0, "binary_data_size must be 4 bytes a number")
        images = np.frombuffer(body, "<f4", offset=end)
    _check(images.size == math.prod(shape), f"`{INPUT}` has {images.size} numbers, which don't fill shape {shape}")
    _check(images.min() >= 0 and images.max() <= 1, f"`{INPUT}` must lie in 0 .. 1 (a byte divided by 255)")
    binary = _parameters(head).get("binary_data_output", False)
    wanted = _list(head, "outputs") or [{"name": name} for name in served.output_shapes]
    outputs = {str(each.get("name")): bool(_parameters(each).get("binary_data", binary)) for each in wanted}
    _check(outputs.keys() <= served.output_shapes.keys(), f"the outputs are {', '.join(served.output_shapes)}")
    return Asked(images.reshape(shape), outputs, head.get("id"))


def write(served: Served, asked: Asked, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in asked.outputs.items():
        array = np.ascontiguousarray(arrays[name], "<f4")
        outputs.append({"name": name, "datatype": "FP32", "shape": list(array.shape)})
        if binary:
            parts.append(array.tobytes())
            outputs[-1]["parameters"] = {"binary_data_size": array.nbytes}
        else:
            outputs[-1]["data"] = array.ravel().tolist()
    head = {"model_name": served.name, "outputs": outputs}
    if asked.request_id is not None:
        head["id"] = asked.request_id
    text = json.dumps(head).encode()
    if not parts:
        return text, {"Content-Type": "application/json"}
    return b"".join([text, *parts]), {"Content-Type": "application/octet-stream", LENGTH: str(len(text))}


def _shape(shape: Any, served: Served) -> list[int]:
    stride, most, fixed = served.model.stride, served.model.imgsz, served.model.network.fixed_shape
    is_whole = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
    channels = served.model.pixels.channels
    is_image = is_whole and len(shape) == 4 and shape[1] == channels
    _check(is_image, f"the shape of `{INPUT}` must be [batch, {channels}, height, width]")
    _check(shape[0] <= served.max_batch, f"a batch of {shape[0]} is too large: {served.max_batch} is the most")
    if fixed:
        _check(tuple(shape[2:]) == tuple(fixed), f"height and width must be {fixed[0]} and {fixed[1]}")
    sides = f"height and width must be multiples of {stride}, at most {size_text(most)}"
    limits = zip(shape[2:], shape_of(most), strict=True)
    _check(all(side % stride == 0 and side <= limit for side, limit in limits), sides)
    return list(shape)


def _numbers(data: Any) -> "array[float]":
    """The numbers in a list, or in lists of lists. numpy would take texts, and many seconds for empty lists."""
    try:
        while isinstance(data, list) and data and isinstance(data[0], list):
            data = list(chain.from_iterable(data))
        return array("f", data)
    except (TypeError, ValueError, OverflowError) as error:
        raise HTTPException(400, f"the data of `{INPUT}` must be numbers in a list") from error


def _list(owner: Mapping[str, Any], key: str, length: int | None = None) -> list[dict[str, Any]]:
    found = owner.get(key, [])
    is_list = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    _check(is_list, f"`{key}` must be objects in a list")
    _check(length is None or len(found) == length, f"`{key}` must have {length} entry")
    return list(found)


def _parameters(owner: Mapping[str, Any]) -> dict[str, Any]:
    parameters = owner.get("parameters", {})
    _check(isinstance(parameters, dict), "`parameters` must be an object")
    return dict(parameters)


def _check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise HTTPException(400, otherwise)
