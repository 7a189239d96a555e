"""The failure zoo: broken runs and healthy ones, each a few seconds on a CPU, and what the monitor says of them.

`python tests/zoo/zoo_cases.py SEED ...` runs all of it and prints a table.
"""

import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import yoloyard
from commands import TINY_NETWORK
from yoloyard.common.device import Precision
from yoloyard.common.errors import UserError
from yoloyard.data.pixels.decode import encode_jpeg
from yoloyard.demo.write import write_demo
from yoloyard.evaluation.report import plots
from yoloyard.training import run as run_module
from yoloyard.training.listeners.events import AlertRaised, Event

NETWORKS = Path(__file__).with_name("broken_networks.py")
COLOURS = np.array([(230, 40, 40), (40, 210, 60), (50, 80, 240), (230, 220, 50)])
SIDE = 64
SETTINGS: dict[str, Any] = {
    "model": TINY_NETWORK, "imgsz": SIDE, "batch": 8, "nbs": 8, "epochs": 22, "amp": False, "tensorboard": False,
    "device": "cpu", "mosaic": 0.0, "hsv_h": 0.0, "ema_ramp": 50.0, "warmup_epochs": 2.0, "lr0": 0.0015,
    "optimizer": "AdamW",
}  # fmt: skip


@dataclass
class Outcome:
    """What became of a run."""

    kinds: list[str] = field(default_factory=list)
    alerts: list[AlertRaised] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    error: str = ""
    folder: Path = Path()
    seconds: float = 0.0


@dataclass
class Case:
    """A run: its data, the settings that differ, and what is expected: a kind of alert, or words in a line or error."""

    name: str
    expected: str
    data: Callable[[Path, int], Path]
    changes: dict[str, Any] = field(default_factory=dict)
    transform: Callable[..., Any] | None = None
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def run(self, folder: Path, seed: int) -> Outcome:
        """Train in `folder`."""
        outcome = Outcome()

        def hear(event: Event) -> None:
            if isinstance(event, AlertRaised):
                outcome.alerts.append(event)
                outcome.kinds.append(event.kind)

        changes = {name: value(folder) if callable(value) else value for name, value in self.changes.items()}
        settings = SETTINGS | {"seed": seed, "project": str(folder / "runs"), "name": "run"} | changes
        began, said = time.perf_counter(), io.StringIO()
        with (
            self.context(),
            mock.patch.object(plots, "figure_svg", return_value="<svg></svg>"),
            mock.patch.dict(os.environ, {"YOLOYARD_CACHE": str(folder / "cache")}),
            contextlib.redirect_stdout(said),
        ):
            try:
                yoloyard.train(
                    data=self.data(folder / "set", seed), on_event=hear, transform=self.transform, **settings
                )
            except UserError as error:
                outcome.error = f"{type(error).__name__}: {error}"
        outcome.lines = said.getvalue().splitlines()
        outcome.seconds, outcome.folder = time.perf_counter() - began, folder / "runs" / "run"
        return outcome

    def is_met(self, outcome: Outcome) -> bool:
        """Was it recognised? A healthy run (nothing expected) must raise no alert."""
        if not self.expected:
            return not outcome.alerts and not outcome.error
        return self.expected in [*outcome.kinds] or any(
            self.expected in line for line in [*outcome.lines, outcome.error]
        )


Boxes = list[tuple[int, tuple[int, int, int, int]]]  # class, xyxy in pixels


def draw(random: np.random.Generator, classes: int, most: int = 3, smallest: int = 12) -> tuple[np.ndarray, Boxes]:
    """Rectangles in the colours of their classes before a grey noise, uint8 RGB (SIDE, SIDE, 3)."""
    image, boxes = random.integers(90, 150, (SIDE, SIDE, 3)).astype(np.uint8), Boxes()
    for _ in range(random.integers(1, most + 1)):
        wide, high = random.integers(smallest, 2 * smallest, 2)
        x, y = random.integers(0, SIDE - wide), random.integers(0, SIDE - high)
        label = int(random.integers(classes))
        image[y : y + high, x : x + wide] = COLOURS[label]
        boxes.append((label, (int(x), int(y), int(x + wide), int(y + high))))
    return image, boxes


def write_set(
    folder: Path,
    seed: int,
    train: int = 64,
    val: int = 16,
    classes: int = 3,
    named: int = 0,
    most: int = 3,
    smallest: int = 12,
    change: Callable[[str, list[str]], list[str]] = lambda split, texts: texts,
    pixels: Callable[[str, int, np.ndarray], np.ndarray] = lambda split, number, image: image,
) -> Path:
    """Write a set of rectangles; `change(split, texts)` may change its label files, `pixels` its images."""
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        texts = []
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image, boxes = draw(np.random.default_rng([seed, number, index]), classes, most, smallest)
            image = pixels(split, index, image)
            (folder / "images" / split / f"{index:04d}.jpg").write_bytes(encode_jpeg(image, 95))
            rows = [(label, (x + r) / 2, (y + b) / 2, r - x, b - y) for label, (x, y, r, b) in boxes]
            texts.append("".join(f"{row[0]} " + " ".join(f"{v / SIDE:.5f}" for v in row[1:]) + "\n" for row in rows))
        for index, text in enumerate(change(split, texts)):
            (folder / "labels" / split / f"{index:04d}.txt").write_text(text)
    names = [f"colour{number}" for number in range(named or classes)]
    content = {"train": "images/train", "val": "images/val", "names": names}
    (folder / "data.yaml").write_text(json.dumps(content))
    return folder / "data.yaml"


def plain(**words: Any) -> Callable[[Path, int], Path]:
    """A set with these arguments of `write_set`."""
    return lambda folder, seed: write_set(folder, seed, **words)


def huge_label(split: str, texts: list[str]) -> list[str]:
    """One label of a million pixels."""
    return ["0 0.5 0.5 15625 15625\n", *texts[1:]] if split == "train" else texts


def wrong_class(split: str, texts: list[str]) -> list[str]:
    """In val class 1 has the number 2."""
    wrong = ["".join("2" + row[1:] if row[0] == "1" else row for row in text.splitlines(True)) for text in texts]
    return wrong if split == "val" else texts


def shuffled(split: str, texts: list[str]) -> list[str]:
    """Each training image has the labels of another one."""
    return texts[7:] + texts[:7] if split == "train" else texts


def swapped_val(split: str, texts: list[str]) -> list[str]:
    """Each validation image has the labels of another one."""
    return texts[5:] + texts[:5] if split == "val" else texts


def empty(split: str, texts: list[str]) -> list[str]:
    """Training images without labels."""
    return [""] * len(texts) if split == "train" else texts


def almost_empty(split: str, texts: list[str]) -> list[str]:
    """Training images of which a few have labels."""
    return [*texts[:5], *[""] * (len(texts) - 5)] if split == "train" else texts


def some_black(split: str, number: int, image: np.ndarray) -> np.ndarray:
    """Every eighth training image is black."""
    return image * 0 if split == "train" and number % 8 == 3 else image


class SlowLater:
    """A transform that takes its time from the second epoch on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.calls += 1
        time.sleep(0.06 if self.calls > 64 else 0)
        return image, boxes, labels


def to_nan(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A transform that normalises by a deviation of 0."""
    return image.astype(np.float32) * np.float32("nan"), boxes, labels


def float16() -> contextlib.AbstractContextManager[object]:
    """This CPU trains as a GPU without bfloat16 does."""
    half = Precision("cpu", torch.float16, "accelerator")
    return mock.patch.object(run_module, "choose_precision", return_value=half)


def demo(folder: Path, seed: int) -> Path:
    """The demo set, small."""
    return write_demo(folder, seed=seed, train=96, val=24, size=128)


def frozen_but_a_bias() -> str:
    """All parameters of the tiny network but one, for `--freeze`."""
    from tiny_network import Tiny

    names = [name for name, _ in Tiny(3).named_parameters()]
    return ",".join(names[:-1])


def weights_of_another_run(folder: Path) -> str:
    """Train on one colour set; its weights are where fine-tuning begins."""
    first = Case("first", "", plain(), {"epochs": 8})
    (folder / "first").mkdir()
    return str(first.run(folder / "first", seed=99).folder / "weights" / "best.safetensors")


BROKEN = [
    Case("learning rate x100", "rate-too-high", plain(),
         {"optimizer": "SGD", "lr0": 1.0, "epochs": 15, "on_divergence": "warn"}),
    Case("learning rate /1000", "rate-too-low", plain(), {"lr0": 1.5e-6, "warmup_bias_lr": 0.0, "epochs": 16}),
    Case("a label of 1e6 px", "labels/train/0000.txt", plain(change=huge_label), {"epochs": 2}),
    Case("NaN after a user's transform", "its image must be a uint8 array", plain(), {"epochs": 2}, to_nan),
    Case("images that a user's block makes NaN", "not-finite", plain(pixels=some_black),
         {"model": f"{NETWORKS}:BlackImage", "epochs": 10}),
    Case("wrong class numbers", "class-never-found", plain(classes=2, named=3, change=wrong_class),
         {"optimizer": "SGD", "lr0": 0.01, "epochs": 36}),
    Case("shuffled labels", "labels-do-not-fit", plain(change=shuffled), {"lr0": 0.002, "epochs": 28}),
    Case("validation with other labels", "validation-far-below-training", plain(change=swapped_val), {"epochs": 27}),
    Case("empty labels", "have not a single label", plain(change=empty), {"epochs": 2}),
    Case("almost only empty labels", "no-labels", plain(change=almost_empty), {"epochs": 2}),
    Case("float16 overflow", "scaler-collapsing", plain(),
         {"model": f"{NETWORKS}:LargeMaps", "epochs": 8, "amp": True, "device_path": "accelerator"}, None, float16),
    Case("an exploding block", "exploding-gradients", plain(),
         {"model": f"{NETWORKS}:Exploding", "epochs": 17, "on_divergence": "warn"}),
    Case("a starved loader", "starved", plain(), {"epochs": 2}, SlowLater()),
    Case("a tiny validation set", "small-validation", plain(val=2), {"epochs": 2}),
    Case("all frozen but a bias", "frozen", plain(), {"epochs": 2, "freeze": frozen_but_a_bias()}),
    Case("all frozen", "every parameter is frozen", plain(), {"epochs": 2, "freeze": "stem,fine,coarse,head"}),
    Case("a learning rate of 0", "frozen", plain(), {"epochs": 10, "lr0": 0.0}),
]  # fmt: skip

HEALTHY = [
    Case("demo", "", demo, {"mosaic": 1.0, "model": "yolo11n", "imgsz": 64, "epochs": 3}),
    Case("many small objects of one kind", "", plain(classes=1, most=12, smallest=5), {"mosaic": 1.0}),
    Case("one class", "", plain(classes=1)),
    Case("three classes", "", plain()),
    Case("SGD", "", plain(classes=2), {"optimizer": "SGD", "lr0": 0.01}),
    Case("fine-tuning", "", plain(), {"weights": weights_of_another_run, "epochs": 16}),
    Case("5 images", "", plain(train=5, val=16), {"batch": 5, "epochs": 40}),
]


def main(seeds: list[int]) -> None:
    """Print a row for each case and seed; with ZOO_DETAILS set also the alerts and what the monitor has seen."""
    for case, seed in itertools.product([*BROKEN, *HEALTHY], seeds):
        if os.environ.get("ZOO_ONLY", "") not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = case.run(Path(folder), seed)
            state = found.folder / "checkpoints" / "last" / "state.json"
            seen = json.loads(state.read_text()).get("monitor", {}).get("history", {}) if state.exists() else {}
        told = ", ".join(dict.fromkeys(found.kinds)) or "none"
        mark = "yes" if case.is_met(found) else "NO"
        print(
            f"| {case.name} | {seed} | {case.expected or 'none'} | {told} | {mark} | {found.seconds:.0f} s |",
            flush=True,
        )
        if "ZOO_DETAILS" in os.environ:
            lines = [found.error, *(alert.line for alert in found.alerts)]
            lines += [f"{name}: {value[-20:] if isinstance(value, list) else value}" for name, value in seen.items()]
            print("\n".join(f"    {line:.1500}" for line in lines), flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
