"""What the tests of several losses have in common."""

import pytest

EDGES = [
    [[0.0, 0, 0, 0]],  # no box: one padded slot
    [],  # not even a slot
    [[10.0, 10, 11, 11]],  # one pixel
    [[-90.0, -90, 200, 200]],  # larger than the image
    [[100.0, 100, 130, 130]],  # outside
    [[8.0, 8, 40, 40], [8.0, 8, 40, 40]],  # two on the same cells
    [[20.0, 20, 20, 20]],  # of no size
    [[32.0, 32, 64, 64]],  # in the corner
]


@pytest.fixture(params=EDGES)
def edge_boxes(request: pytest.FixtureRequest) -> list[list[float]]:
    """Boxes xyxy of an image of 64 x 64 pixels that a loss may stumble over."""
    boxes: list[list[float]] = request.param
    return boxes
