"""Tensors that a request may hold, where images are fitted into a height and a width."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from yoloyard.common.image_size import ImageSize
from yoloyard.common.pixel_spec import EIGHT_BITS
from yoloyard.serving import v2


def served(imgsz: ImageSize) -> Any:
    network = SimpleNamespace(fixed_shape=None)
    model = SimpleNamespace(stride=32, imgsz=imgsz, network=network, pixels=EIGHT_BITS, tile=None)
    return SimpleNamespace(name="best", max_batch=2, model=model, output_shapes={"boxes": [-1, -1, 4]})


def body(*shape: int) -> bytes:
    data = np.zeros(shape).ravel().tolist()
    return json.dumps({"inputs": [{"name": "images", "datatype": "FP32", "shape": shape, "data": data}]}).encode()


@pytest.mark.parametrize(("height", "width"), [(64, 160), (64, 32), (32, 160)])
def test_each_side_has_its_limit(height: int, width: int) -> None:
    assert v2.read(body(1, 3, height, width), None, served((64, 160))).images.shape == (1, 3, height, width)


@pytest.mark.parametrize(("height", "width"), [(160, 64), (96, 96), (64, 192), (64, 150)])
def test_what_is_larger_than_its_side_or_between_strides_is_refused(height: int, width: int) -> None:
    with pytest.raises(HTTPException) as caught:
        v2.read(body(1, 3, height, width), None, served((64, 160)))
    assert (caught.value.status_code, caught.value.detail) == (
        400,
        "height and width must be multiples of 32, at most 64x160",
    )


def test_a_body_may_be_as_large_as_the_largest_batch() -> None:
    assert v2.most_bytes(served((64, 160))) - v2.JSON_BYTES == 2 * 3 * 64 * 160 * 4
    assert v2.most_bytes(served(96)) - v2.JSON_BYTES == 2 * 3 * 96 * 96 * 4
