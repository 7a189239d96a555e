"""Images of an invented inspection line: metal, circuit boards and fabric, some with defects, and their exact boxes.

Each image has one random generator and depends on nothing else.
Colours are RGB, 0..1. Shapes: S side of an image, s side of a square patch, n defects of an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

NAMES = ("scratch", "dent", "stain", "missing_screw", "crack")
TRAINING_SURFACES = ("steel", "aluminium", "green board", "blue board", "plain weave", "twill")
VALIDATION_ONLY_SURFACES = ("brass", "red board", "herringbone")

Area = tuple[float, float, float, float]  # xyxy
VISIBLE = 0.25  # a pixel belongs to a defect if the drawn shape covers this part of it
_FINE = 4  # lines are drawn this many times larger and averaged down, so that thin ones are smooth
_METALS = {"steel": (0.50, 0.53, 0.57), "aluminium": (0.66, 0.67, 0.67), "brass": (0.66, 0.55, 0.30)}
_BOARDS = {"green board": (0.06, 0.33, 0.17), "blue board": (0.07, 0.18, 0.42), "red board": (0.44, 0.08, 0.09)}
_FABRICS = {
    "plain weave": ((0.28, 0.33, 0.45), (0.62, 0.57, 0.46), (0.45, 0.46, 0.47)),
    "twill": ((0.22, 0.30, 0.42), (0.36, 0.42, 0.30), (0.55, 0.47, 0.40)),
    "herringbone": ((0.48, 0.30, 0.30), (0.40, 0.36, 0.46)),
}


@dataclass(frozen=True)
class DrawnImage:
    """A finished image."""

    pixels: np.ndarray  # uint8 RGB (S, S, 3)
    boxes_xyxy: np.ndarray  # int64 (n, 4), first pixel to one past the last
    labels: np.ndarray  # int64 (n,), positions in NAMES
    masks: np.ndarray  # bool (n, S, S): the pixels of each defect
    surface: str


def draw_image(
    rng: np.random.Generator,
    surface_name: str,
    defective: bool,
    size: int,
    scale: float | None = None,
    most_defects: int = 5,
) -> DrawnImage:
    """Draw one image of `size` x `size` pixels with one to `most_defects` defects that don't touch, or with none.

    Details and defects are `scale` times as large as in an image of 320 pixels; without it they grow with the image.
    """
    scale = size / 320 if scale is None else scale
    kind = "metal" if surface_name in _METALS else "board" if surface_name in _BOARDS else "fabric"
    shares = np.array(list(_SHARES[kind].values()))
    num_defects = int(rng.integers(1, most_defects + 1)) if defective else 0
    wanted = [str(name) for name in rng.choice(list(_SHARES[kind]), num_defects, p=shares / shares.sum())]
    holes = wanted.count("missing_screw")
    zoom = float(rng.uniform(0.75, 1.35)) * scale  # how near the camera is; details scale with it
    sockets = _socket_positions(rng, size, zoom, holes) if kind != "fabric" else []
    taken = [(x - 14 * zoom, y - 14 * zoom, x + 14 * zoom, y + 14 * zoom) for x, y in sockets]  # xyxy areas in use
    draw_surface = {"metal": _brushed_metal, "board": _circuit_board, "fabric": _fabric}[kind]
    pixels = draw_surface(rng, surface_name, size, zoom, taken)  # float32 (S, S, 3)
    defects = []  # names, patches of the image, and how far each pixel of them is covered, 0..1
    for position, socket in enumerate(sockets):
        patch, cover = _draw_socket(rng, pixels, zoom, socket, has_screw=position >= holes)
        if position < holes:
            defects.append(("missing_screw", patch, cover))
    for name in wanted:
        if name == "missing_screw":
            continue
        draw, smallest, largest = _DEFECTS[name]
        side = round(float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))) * scale)
        if corner := _free_place(rng, taken, size, side, side):
            patch = np.s_[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
            defects.append((name, patch, draw(rng, pixels[patch], kind)))
    masks = np.zeros((len(defects), size, size), bool)
    for mask, (_, patch, cover) in zip(masks, defects, strict=True):
        mask[patch] = cover >= VISIBLE
    bounds = [cv2.boundingRect(mask.astype(np.uint8)) for mask in masks]  # x, y, width, height
    boxes = np.array([(x, y, x + wide, y + high) for x, y, wide, high in bounds], np.int64).reshape(-1, 4)
    labels = np.array([NAMES.index(name) for name, _, _ in defects], np.int64)
    return DrawnImage(_photograph(rng, pixels), boxes, labels, masks, surface_name)


def _free_place(rng: np.random.Generator, taken: list[Area], size: int, wide: int, high: int) -> tuple[int, int] | None:
    """A random corner (x, y) of a rectangle that touches nothing `taken`, and is added to it; None if there is none."""
    gap = 3
    for _ in range(40):
        x, y = (int(rng.integers(gap, max(size - side - gap, gap + 1))) for side in (wide, high))
        if all(
            x > right + gap or x + wide < left - gap or y > bottom + gap or y + high < top - gap
            for left, top, right, bottom in taken
        ):
            taken.append((x, y, x + wide, y + high))
            return x, y
    return None


def _noise(rng: np.random.Generator, size: int, grain: float) -> np.ndarray:
    """Smooth noise (S, S) of zero mean and unit deviation; its spots are about `grain` pixels wide."""
    coarse = max(int(size / grain), 2)
    spots = rng.standard_normal((coarse, coarse), np.float32)
    spread = cv2.resize(spots, (size, size), interpolation=cv2.INTER_CUBIC)
    return (spread - spread.mean()) / (spread.std() + 1e-6)


def _tint(rng: np.random.Generator, colour: np.ndarray, amount: float) -> np.ndarray:
    """The colour, a little lighter or darker and of another hue."""
    return (colour * rng.uniform(1 - amount, 1 + amount) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)


def _brushed_metal(rng: np.random.Generator, name: str, size: int, zoom: float, taken: list[Area]) -> np.ndarray:
    """Fine lines along the brush's direction over broad, soft reflections."""
    padded = size * 3 // 2
    grain = rng.standard_normal((padded, padded), np.float32)
    length = int(50 * zoom) * 2 + 1
    lines = cv2.blur(grain, (length, 1)) * length**0.5 + 0.7 * cv2.blur(grain, (length // 6 | 1, 1))
    angle = float(rng.choice([0, 90]) + rng.uniform(-8, 8))
    turn = cv2.getRotationMatrix2D((padded / 2, padded / 2), angle, 1.0)
    offset = (padded - size) // 2
    lines = cv2.warpAffine(lines, turn, (padded, padded))[offset : offset + size, offset : offset + size]
    shade = 1 + 0.035 * lines + 0.03 * _noise(rng, size, 90)
    return shade[..., None] * _tint(rng, np.array(_METALS[name]), 0.15)


def _circuit_board(rng: np.random.Generator, name: str, size: int, zoom: float, taken: list[Area]) -> np.ndarray:
    """Solder mask with traces that bend, vias, chips with legs and white print. Adds the chips' areas to `taken`."""
    base = _tint(rng, np.array(_BOARDS[name]), 0.2)
    pixels = np.tile(base, (size, size, 1))
    trace, metal = np.minimum(base * 1.45 + 0.02, 1), np.array([0.72, 0.66, 0.48], np.float32)
    width = max(round(2.2 * zoom), 1)
    for _ in range(int(rng.integers(5, 9))):  # buses of parallel traces
        x, y = rng.integers(0, size, 2)
        run, drop = rng.integers(40, 150), rng.integers(-60, 61)
        corners = np.array([[-40, 0], [run, 0], [run + abs(drop), drop], [run + 260, drop]])
        corners = corners[:, ::-1] if rng.random() < 0.5 else corners
        step = np.array([1, 1]) * round(6 * zoom)
        buses = [corners + [x, y] + lane * step for lane in range(int(rng.integers(1, 5)))]
        cv2.polylines(pixels, [bus.astype(np.int32) for bus in buses], False, trace.tolist(), width, cv2.LINE_AA)
    for x, y in rng.integers(6, size - 6, (int(rng.integers(10, 28)), 2)).tolist():
        radius = max(round(2.6 * zoom), 2)
        cv2.circle(pixels, (x, y), radius, metal.tolist(), -1, cv2.LINE_AA)
        cv2.circle(pixels, (x, y), max(radius // 2, 1), (base * 0.4).tolist(), -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(2, 6))):
        wide, high = (int(side * zoom) for side in rng.integers(12, 40, 2))
        corner = _free_place(rng, taken, size, wide + 10, high + 12)
        if corner is None:
            continue
        x, y = corner[0] + 5, corner[1] + 6
        for leg in range(x + 2, x + wide - 2, max(round(5 * zoom), 3)):
            cv2.line(pixels, (leg, y - 3), (leg, y + high + 3), (0.74, 0.75, 0.76), max(round(2 * zoom), 1))
        cv2.rectangle(pixels, (x, y), (x + wide, y + high), (0.11, 0.11, 0.12), -1)
        cv2.circle(pixels, (x + 4, y + 4), 1, (0.45, 0.45, 0.45), -1, cv2.LINE_AA)
        cv2.rectangle(pixels, (x - 5, y - 6), (x + wide + 5, y + high + 6), (0.78, 0.80, 0.78), 1)
    return pixels * (1 + 0.03 * _noise(rng, size, 60) + 0.02 * _noise(rng, size, 3))[..., None]


def _fabric(rng: np.random.Generator, name: str, size: int, zoom: float, taken: list[Area]) -> np.ndarray:
    """Threads over and under each other: plain weave, diagonal twill, or twill that changes direction in stripes."""
    colour = np.array(_FABRICS[name][int(rng.integers(len(_FABRICS[name])))])
    pitch, bend = 5.0 * zoom, 2.0 * zoom
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x + bend * _noise(rng, size, 110), y + bend * _noise(rng, size, 110)
    warp, weft = np.sin(2 * np.pi * x / pitch), np.sin(2 * np.pi * y / pitch)
    if name == "plain weave":
        height = warp * weft
    else:
        side = np.sign(np.sin(np.pi * x / (9 * pitch))) if name == "herringbone" else 1.0
        height = 0.8 * np.sin(2 * np.pi * (x + side * y) / (1.5 * pitch)) + 0.25 * warp
    shade = 1 + 0.13 * height + 0.04 * _noise(rng, size, 2) + 0.03 * _noise(rng, size, 80)
    pixels = shade[..., None] * _tint(rng, colour, 0.25)
    if rng.random() < 0.4:  # a seam: two rows of stitches
        row = int(rng.integers(20, size - 20))
        for stitch in range(0, size, round(9 * zoom)):
            for lane in (row, row + round(6 * zoom)):
                cv2.line(pixels, (stitch, lane), (stitch + round(5 * zoom), lane), (colour * 1.5 + 0.1).tolist(), 1)
        pixels[row - 2 : row] *= 0.8
    return np.ascontiguousarray(pixels.transpose(1, 0, 2)) if rng.random() < 0.5 else pixels


def _socket_positions(rng: np.random.Generator, size: int, zoom: float, holes: int) -> list[tuple[float, float]]:
    """Where the object is screwed down, (x, y) in random order: corners of a rectangle, at least `holes` (0 to 5)."""
    if holes == 0 and rng.random() < 0.3:
        return []
    margin = 16 * zoom + 3
    left, top = rng.uniform(margin, size * 0.35, 2)
    right, bottom = rng.uniform(size * 0.65, size - margin, 2)
    points = [(left, top), (right, top), (left, bottom), (right, bottom), ((left + right) / 2, top)]
    return [points[i] for i in rng.permutation(len(points))[: max(int(rng.integers(2, 6)), holes)]]


def _draw_socket(
    rng: np.random.Generator, pixels: np.ndarray, zoom: float, centre: tuple[float, float], has_screw: bool
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draw a screw, or the bare countersunk hole where one is missing. Returns its patch and how far it covers that."""
    radius = float(rng.uniform(9.5, 11.5)) * zoom
    left, top = (int(value - radius) - 1 for value in centre)
    patch = np.s_[top : int(centre[1] + radius) + 2, left : int(centre[0] + radius) + 2]
    y, x = np.mgrid[patch].astype(np.float32)
    x, y = x + 0.5 - centre[0], y + 0.5 - centre[1]
    distance, slope = np.hypot(x, y), (x + y) / (1.4 * radius)
    cover = np.clip(radius - distance + 0.5, 0, 1)
    if has_screw:
        angle = float(rng.uniform(0, np.pi / 2))
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        arm, half = 0.62 * radius, 0.15 * radius
        cross = (np.abs(along) < arm) & (np.abs(across) < half) | (np.abs(across) < arm) & (np.abs(along) < half)
        face = 0.78 - 0.14 * slope - 0.45 * cross - 0.3 * (distance > 0.88 * radius)
    else:
        hole = np.clip(0.66 * radius - distance + 0.5, 0, 1)
        thread = 0.05 * (np.sin(distance * 6.0 / zoom) > 0)
        face = (0.62 + 0.22 * slope) * (1 - hole) + (0.05 + thread) * hole
    _blend(pixels[patch], cover, face[..., None] * np.array([0.98, 1.0, 1.0], np.float32))
    return patch, cover


# Each defect draws into a square patch (s, s, 3) of the image and returns how far it covers each pixel, (s, s) 0..1.


def _stroke(points: np.ndarray, widths: np.ndarray, side: int) -> np.ndarray:
    """How far a line through `points` (k, 2), of `widths` (k,) in pixels, covers each pixel of a patch (s, s)."""
    fine = np.zeros((side * _FINE, side * _FINE), np.uint8)
    scaled = np.rint(points * _FINE).astype(np.int32)
    for start, end, width in zip(scaled[:-1], scaled[1:], widths[:-1], strict=True):
        cv2.line(fine, start.tolist(), end.tolist(), 255, max(round(float(width) * _FINE), 1))
    return cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _blend(patch: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    patch += (cover[..., None] * (colour - patch)).astype(np.float32)


def _across(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two ends (x, y) on opposite sides of a patch."""
    angle = rng.uniform(0, 2 * np.pi)
    way = np.array([np.cos(angle), np.sin(angle)]) * (side / 2 - 3)
    return side / 2 - way, side / 2 + way


def _grid(side: int) -> np.ndarray:
    """y and x of the pixels of a patch, float32 (2, s, s), -1..1."""
    return (np.mgrid[:side, :side].astype(np.float32) + 0.5) / side * 2 - 1


def _scratch(rng: np.random.Generator, patch: np.ndarray, kind: str) -> np.ndarray:
    """A smooth bright groove that thins out, with a dark edge; on fabric a pulled thread."""
    side = patch.shape[0]
    start, end = _across(rng, side)
    middle = (start + end) / 2 + rng.uniform(-0.12, 0.12, 2) * side
    t = np.linspace(0, 1, 17)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    widths = float(rng.uniform(1.8, 3.0)) * (0.55 + 0.45 * np.sin(np.pi * t[:, 0]))
    cover, edge = _stroke(points, widths, side), _stroke(points + 0.9, widths, side)
    patch *= 1 - 0.45 * edge[..., None]
    bare = {"metal": [0.97, 0.98, 1.0], "board": [0.93, 0.80, 0.62], "fabric": [0.93, 0.92, 0.88]}[kind]
    _blend(patch, 0.95 * cover, np.array(bare))
    return np.maximum(cover, edge)


def _crack(rng: np.random.Generator, patch: np.ndarray, kind: str) -> np.ndarray:
    """A dark jagged line with branches."""
    side = patch.shape[0]
    start, end = _across(rng, side)
    num_points = max(side // 7, 5)
    t = np.linspace(0, 1, num_points)[:, None]
    normal = np.array([start[1] - end[1], end[0] - start[0]]) / side
    zigzag = rng.uniform(0.06, 0.13, num_points) * rng.choice([-1.0, 1.0], num_points)
    zigzag *= np.sin(np.pi * t[:, 0]) > 0.05
    points = ((1 - t) * start + t * end + zigzag[:, None] * side * normal).clip(2, side - 2)
    width = float(rng.uniform(1.7, 2.6))
    cover = _stroke(points, np.full(num_points, width), side)
    for root in rng.integers(1, num_points - 1, 2 + side // 40):
        way = (end - start) * rng.uniform(0.1, 0.22) + normal * rng.choice([-1.0, 1.0]) * side * rng.uniform(0.12, 0.25)
        branch = np.stack([points[root], points[root] + 0.5 * way + rng.uniform(-1.5, 1.5, 2), points[root] + way])
        cover = np.maximum(cover, _stroke(branch.clip(2, side - 2), np.full(3, 0.7 * width), side))
    _blend(patch, 0.92 * cover, np.array([0.03, 0.03, 0.04]))
    return cover


def _stain(rng: np.random.Generator, patch: np.ndarray, kind: str) -> np.ndarray:
    """A drop that dried: an uneven brown or oily blotch, darker at its edge."""
    side = patch.shape[0]
    y, x = _grid(side)
    angle = np.arctan2(y, x)
    outline = np.full_like(x, 0.8)
    for wave in (2, 3, 5):
        outline += rng.uniform(0.02, 0.16 / wave**0.5) * np.sin(wave * angle + rng.uniform(0, 6.3))
    depth = (np.minimum(outline, 0.97) - np.hypot(x, y)) * side / 2  # pixels from the edge inwards
    cover = np.clip(depth + 0.5, 0, 1)
    ring = np.exp(-((depth - 1.5) ** 2) / (2 * (0.035 * side + 0.8) ** 2))
    strength = np.clip(0.62 + 0.25 * ring + 0.06 * _noise(rng, side, max(side / 4, 1)), 0, 0.95)
    colours = np.array([[0.30, 0.16, 0.05], [0.38, 0.24, 0.06], [0.24, 0.12, 0.09]])
    if kind == "board":  # flux residue is pale
        colours = np.array([[0.80, 0.72, 0.42], [0.72, 0.58, 0.30]])
    _blend(patch, cover * strength, colours[int(rng.integers(len(colours)))])
    return cover


def _dent(rng: np.random.Generator, patch: np.ndarray, kind: str) -> np.ndarray:
    """A hollow: dark on the side towards the light, bright on the far side, no colour of its own."""
    side = patch.shape[0]
    y, x = _grid(side)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.68, 0.95)
    along, across = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / stretch
    radius = np.hypot(along, across) / 0.95
    cover = np.clip((1 - radius) * side * 0.4 + 0.5, 0, 1)
    light = rng.normal(np.pi / 4, 0.35)  # from the top left, as everywhere on this line
    slope = (x * np.cos(light) + y * np.sin(light)) / 0.95
    shading = 0.85 * slope * np.sin(np.pi * np.clip(radius, 0, 1) ** 0.8) ** 0.6 - 0.18 * np.clip(1 - radius, 0, 1)
    patch *= (1 + cover * np.clip(shading, -0.75, 0.8))[..., None]
    return cover


# How each is drawn, and its smallest and largest side in pixels at an image size of 320. Screws follow the zoom.
_DEFECTS: dict[str, tuple[Callable[[np.random.Generator, np.ndarray, str], np.ndarray], float, float]] = {
    "scratch": (_scratch, 26, 110),
    "dent": (_dent, 18, 64),
    "stain": (_stain, 20, 80),
    "crack": (_crack, 26, 100),
}
# What happens to which material, and how often: about equally many of each over the whole set.
_SHARES = {
    "metal": {"scratch": 2, "dent": 3, "stain": 2, "missing_screw": 3, "crack": 3},
    "board": {"scratch": 2, "stain": 2, "missing_screw": 3, "crack": 3},
    "fabric": {"scratch": 2, "dent": 3, "stain": 2},
}


def _photograph(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Light that falls off to one side, its colour, exposure, the lens and the sensor: uint8 (S, S, 3)."""
    size = pixels.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float32) / size * 2 - 1
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    light = 1 + fall * (x * math.cos(angle) + y * math.sin(angle)) - rng.uniform(0, 0.16) * (x * x + y * y)
    warmth = rng.uniform(-0.07, 0.07)
    colour = rng.uniform(0.72, 1.2) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    lit = pixels * light[..., None] * colour
    if rng.random() < 0.5:
        lit = cv2.GaussianBlur(lit, (5, 5), float(rng.uniform(0.3, 0.8)))
    lit += rng.uniform(0.004, 0.02) * rng.standard_normal(lit.shape, np.float32)
    return np.rint(lit.clip(0, 1) * 255).astype(np.uint8)
