"""What a machine with a CUDA GPU makes of a training: one command, below eight minutes, a table, and JSON beside it.

    python benchmarks/gpu.py              on the GPU; --out FILE.json, default benchmarks/results/gpu.json
    python benchmarks/gpu.py --rehearse   the same at tiny sizes on the CPU, in about a minute

torch, NumPy, OpenCV and this repository are all that is needed. With pytest the tests marked `gpu` are run, without it
the same checks one by one. What takes too much memory or time is a result like others: checks and compiled networks
have processes of their own, which may be ended.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import on_device  # noqa: E402
from on_device import Training, some_batch  # noqa: E402
from yoloyard import recipes  # noqa: E402
from yoloyard.config import TrainConfig, with_words  # noqa: E402
from yoloyard.data.data_yaml import DataSpec, Entry  # noqa: E402
from yoloyard.data.demo import write_demo  # noqa: E402
from yoloyard.data.demo_pictures import NAMES  # noqa: E402
from yoloyard.data.index import Index, load_index  # noqa: E402
from yoloyard.data.loader import make_train_loader, make_val_loader  # noqa: E402
from yoloyard.device import choose_precision  # noqa: E402
from yoloyard.evaluation.coco import evaluate  # noqa: E402
from yoloyard.evaluation.validate import predict_all  # noqa: E402
from yoloyard.models import registry  # noqa: E402
from yoloyard.models.profile import profile  # noqa: E402
from yoloyard.training.optimizer import Schedule  # noqa: E402

MODELS = ("yolo11n", "yolov5s", "yolo11m", "yolo11x")
MODES = ("float32", "amp")
CLASSES = 80
BOXES = 16  # of an image
LEAST_STEPS = 3  # that are measured
COPIES = 32  # of each picture that the loader reads


@dataclass(frozen=True)
class Sizes:
    """How much is done. Times are seconds."""

    imgsz: int
    batches: tuple[int, ...]
    compiled_batches: tuple[int, ...]  # all models with the first one, then as far as time allows
    seconds: float  # that a figure is measured for
    checks: float  # the most that these parts may take; `steps` is looked at between two figures
    steps: float
    compiled: float  # of one model
    total: float
    matmul: int
    pictures: int  # of the loader, each in COPIES files
    picture_size: int
    demo: tuple[int, int, int]  # pictures for training and validation, pixels
    epochs: int


FULL = Sizes(
    imgsz=640,
    batches=(8, 16, 32, 64, 128),
    compiled_batches=(16, 64, 32),
    seconds=1.5,
    checks=120,
    steps=110,
    compiled=100,
    total=460,
    matmul=8192,
    pictures=48,
    picture_size=1024,
    demo=(400, 100, 320),
    epochs=12,
)
REHEARSAL = Sizes(
    imgsz=64,
    batches=(1, 2),
    compiled_batches=(2, 1),
    seconds=0.1,
    checks=240,
    steps=15,
    compiled=8,
    total=280,
    matmul=256,
    pictures=4,
    picture_size=128,
    demo=(8, 4, 96),
    epochs=1,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training on this machine's GPU.")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    parser.add_argument("--checks", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--compiled", nargs=2, help=argparse.SUPPRESS)  # a model and a batch, in a process of its own
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --rehearse does the same at tiny sizes on the CPU")
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    sizes = REHEARSAL if arguments.rehearse else FULL
    if arguments.checks:
        for answer in run_checks(device):
            print(json.dumps(answer), flush=True)
    elif arguments.compiled:
        model, batch = arguments.compiled
        print(json.dumps(measure_steps(device, model, "amp", int(batch), sizes, True)))
    else:
        default = Path("runs", "gpu-rehearsal.json") if arguments.rehearse else ROOT / "benchmarks/results/gpu.json"
        out = arguments.out or default
        out.parent.mkdir(parents=True, exist_ok=True)
        print(table_of(measure_all(device, sizes, out)))
        print(f"all figures: {out}")


def measure_all(device: torch.device, sizes: Sizes, out: Path) -> dict[str, Any]:
    """All figures; what there is after each part is in the JSON file `out` already."""
    end = time.monotonic() + sizes.total
    results: dict[str, Any] = {"measured": date.today().isoformat(), "machine": machine(device)}

    def keep(name: str, value: Any) -> None:
        results[name] = value
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: done, {end - time.monotonic():.0f} s are left", file=sys.stderr, flush=True)

    keep("checks", checks(device, sizes))
    keep("peak", {mode: peak_of(device, dtype_of(device, mode), sizes) for mode in MODES})
    keep("steps", all_steps(device, sizes, results["peak"]))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["YOLOYARD_CACHE"] = str(Path(folder, "cache"))
        keep("loader", loader_speeds(device, sizes, Path(folder)))
        keep("demo", train_demo(device, sizes, Path(folder)))
    compiled = []
    for batch, model in itertools.product(sizes.compiled_batches, MODELS):
        limit = min(sizes.compiled, end - time.monotonic())
        compiled.append(with_share(compiled_steps(device, model, batch, limit), results["peak"], sizes))
        keep("compiled", compiled)
    return results


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "device": "cpu",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "amp": str(dtype_of(device, "amp")),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "gigabytes": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def checks(device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    """The tests marked `gpu`, by pytest where it is installed: what was checked, whether it holds, what was said."""
    own = [sys.executable, str(Path(__file__).resolve()), "--checks"]
    if device.type == "cpu" or importlib.util.find_spec("pytest") is None:
        said, ending = run_limited([*own, "--rehearse"] if device.type == "cpu" else own, sizes.checks)
        found = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
        return [*found, {"check": "all of them", "holds": False, "said": ending}] if ending else found
    files = ["tests/training/test_on_device.py"]
    if all(importlib.util.find_spec(name) for name in ("cyclopts", "rich", "safetensors", "yaml", "matplotlib")):
        files.append("tests/end_to_end/test_train_on_gpu.py")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-vv", "--tb=short", *files]
    said, _ = run_limited(command, sizes.checks)
    found = checks_of_pytest(said)
    if not re.search(r"^=+ .*passed.* in ", said, re.MULTILINE) or not all(check["holds"] for check in found):
        found.append({"check": "pytest, all of it", "holds": False, "said": said[-6000:] or "not finished"})
    return found


def checks_of_pytest(said: str) -> list[dict[str, Any]]:
    """The tests that pytest names with `-vv`, also those before it was ended."""
    lines = re.findall(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", said, re.MULTILINE)
    return [{"check": name, "holds": verdict == "PASSED", "said": ""} for name, verdict in lines]


def run_checks(device: torch.device) -> Iterator[dict[str, Any]]:
    """The checks of on_device.py one by one."""
    amp = dtype_of(device, "amp")
    todo = {
        "losses are those of the CPU": partial(on_device.check_that_losses_are_those_of_the_cpu, device),
        "losses are those of the CPU, yolov5n": partial(
            on_device.check_that_losses_are_those_of_the_cpu, device, "yolov5n"
        ),
    }
    for dtype in dict.fromkeys((torch.float32, amp, *([torch.float16] if device.type == "cuda" else []))):
        todo[f"a step waits for nothing, {dtype}"] = partial(
            on_device.check_that_steps_wait_for_nothing, device, dtype, "yolo11n"
        )
        todo[f"a bad step leaves no trace, {dtype}"] = partial(
            on_device.check_that_a_bad_step_leaves_no_trace, device, dtype
        )
    if device.type == "cuda":  # on a CPU compiling takes more than the rehearsal
        todo["compiling changes nothing"] = partial(on_device.check_that_compiling_changes_nothing, device, amp)
    for name, check in todo.items():
        try:
            check()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            yield {"check": name, "holds": False, "said": f"{type(error).__name__}: {error}"[:2000]}
        else:
            yield {"check": name, "holds": True, "said": ""}


def run_limited(command: list[str], limit: float) -> tuple[str, str]:
    """What a command writes to its standard output, up to its end or the limit in seconds; what went wrong, or ""."""
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=max(limit, 1), check=False
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), f"no end within {limit:.0f} s"
    ending = f"it ended with exit code {done.returncode}" if done.returncode else ""
    return done.stdout.decode(errors="replace"), ending


def dtype_of(device: torch.device, mode: str) -> torch.dtype:
    return choose_precision(device, amp=mode == "amp").dtype


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def peak_of(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> float:
    """Operations a second of a large product of matrices; float32 as TF32, which is what convolutions use."""
    matrix = torch.randn(sizes.matmul, sizes.matmul, device=device).to(dtype)
    result = torch.empty_like(matrix)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    best = 0.0
    for _ in range(5):  # the first ones are slow
        synchronize(device)
        began = time.perf_counter()
        for _ in range(5):
            torch.mm(matrix, matrix, out=result)
        synchronize(device)
        best = max(best, 5 * 2 * sizes.matmul**3 / (time.perf_counter() - began))
    torch.backends.cuda.matmul.allow_tf32 = before
    return best


def all_steps(device: torch.device, sizes: Sizes, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Steps of all models in float32 and AMP, ever larger batches until the memory or the time is used up."""
    end = time.monotonic() + sizes.steps
    rows: list[dict[str, Any]] = []
    for done, model in enumerate(MODELS):
        # an even share of what is left, over the models that are still to come
        model_end = time.monotonic() + (end - time.monotonic()) / (len(MODELS) - done)
        full: set[str] = set()
        for images, mode in itertools.product(sizes.batches, MODES):
            if mode in full or (rows and rows[-1]["model"] == model and time.monotonic() > model_end):
                continue
            row = measure_steps(device, model, mode, images, sizes, compiled=False)
            if "error" in row:
                full.add(mode)
            rows.append(with_share(row, peak, sizes))
    return rows


def measure_steps(
    device: torch.device, model: str, mode: str, images: int, sizes: Sizes, compiled: bool
) -> dict[str, Any]:
    """Seconds of a training step and the most memory, or the error where there is not enough of it."""
    row: dict[str, Any] = {"model": model, "mode": mode, "batch": images}
    try:
        return row | _steps(device, model, dtype_of(device, mode), images, sizes, compiled)
    except torch.OutOfMemoryError:
        return row | {"error": "out of memory"}
    except RuntimeError as error:  # such as cuDNN's own way of saying that there is no memory
        return row | {"error": " ".join(str(error).split())[:200]}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _steps(
    device: torch.device, model: str, dtype: torch.dtype, images: int, sizes: Sizes, compiled: bool
) -> dict[str, Any]:
    shape = (images, 3, sizes.imgsz, sizes.imgsz)
    training = Training(device, dtype, model, compiled_for=shape if compiled else None, num_classes=CLASSES)
    batches = [
        some_batch(images, sizes.imgsz, BOXES, seed, pinned=device.type == "cuda") for seed in range(LEAST_STEPS)
    ]
    for batch in batches[: 1 if device.type == "cpu" else None]:
        training.step(batch)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    verdict = None
    count, began = 0, time.perf_counter()
    while count < LEAST_STEPS or time.perf_counter() - began < sizes.seconds:
        outcome = training.step(batches[count % LEAST_STEPS])
        if verdict is not None:
            verdict.read()  # as the trainer does: the host is a step ahead and no more
        verdict = outcome.send()
        count += 1
    synchronize(device)
    found: dict[str, Any] = {"seconds": (time.perf_counter() - began) / count, "said": training.lines}
    if device.type == "cuda":
        found["gigabytes"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def with_share(row: dict[str, Any], peak: dict[str, float], sizes: Sizes) -> dict[str, Any]:
    """The row with images a second and the share of the peak: a step is three forwards, by the published counting."""
    if "seconds" not in row:
        return row
    cost = profile(registry.build(row["model"], num_classes=CLASSES), sizes.imgsz)
    speed = row["batch"] / row["seconds"]
    share = 3 * (cost.flops + cost.attention_flops) * speed / peak[row["mode"]]
    return row | {"images_per_second": speed, "share_of_peak": share}


def compiled_steps(device: torch.device, model: str, batch: int, limit: float) -> dict[str, Any]:
    """Steps of a compiled network, in a process that is ended when its time is over."""
    row = {"model": model, "mode": "amp", "batch": batch}
    command = [sys.executable, str(Path(__file__).resolve()), "--compiled", model, str(batch)]
    if limit <= 1:
        return row | {"error": "no time was left"}
    answer, ending = run_limited([*command, "--rehearse"] if device.type == "cpu" else command, limit)
    lines = answer.strip().splitlines()
    return row | {"error": ending or "no answer"} if ending or not lines else json.loads(lines[-1])


def loader_speeds(device: torch.device, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Training images a second (mosaic, affine, colour, flip) by the number of worker processes."""
    write_demo(folder / "drawn", train=sizes.pictures, val=1, size=sizes.picture_size)
    for kind in ("images", "labels"):
        target = folder / "many" / kind / "train"
        target.mkdir(parents=True)
        for file in (folder / "drawn" / kind / "train").iterdir():
            for copy in range(COPIES):
                shutil.copyfile(file, target / f"{file.stem}-{copy}{file.suffix}")
    index = index_of(folder / "many", "train")
    rows = []
    cores = machine(device)["cores"]
    for workers in [0, *itertools.takewhile(lambda count: count <= cores, (2**power for power in range(6)))]:
        words = {"imgsz": sizes.imgsz, "batch": min(16, len(index)), "workers": workers}
        config = with_words(TrainConfig(), words)
        loader = make_train_loader(index, config, pin_memory=device.type == "cuda")
        batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch, epochs=10**6))
        for _ in range(2 * workers + 1):  # what was made ahead, while the workers started
            next(batches)
        count, began = 0, time.perf_counter()
        while count < workers + 2 or time.perf_counter() - began < sizes.seconds:
            next(batches)
            count += 1
        speed = count * config.batch / (time.perf_counter() - began)
        rows.append({"workers": workers, "images_per_second": speed})
        batches.close()
    return rows


def train_demo(device: torch.device, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Train yolo11n on the demo set with AMP: seconds of the epochs, and mAP."""
    train, val, size = sizes.demo
    write_demo(folder / "demo", train=train, val=val, size=size)
    indexes = {split: index_of(folder / "demo", split) for split in ("train", "val")}
    workers = 0 if device.type == "cpu" else min(8, machine(device)["cores"])
    words = {"imgsz": size, "batch": min(8, train), "epochs": sizes.epochs, "workers": workers}
    config = with_words(TrainConfig(), words)
    config, _ = recipes.fit_to_run(config, words, train, len(NAMES))
    precision = choose_precision(device, amp=True)
    pin_memory = device.type == "cuda"
    loader = make_train_loader(indexes["train"], config, pin_memory=pin_memory)
    training = Training(device, precision.dtype, optimization=config.optimization, num_classes=len(NAMES))
    schedule = Schedule(config.optimization, config.epochs, len(loader), config.batch)
    seconds, number = [], 0
    for epoch in range(config.epochs):
        began = time.perf_counter()
        verdict = None
        for batch in loader.epoch(epoch):
            schedule.apply(training.optimizer, number)
            outcome = training.step(batch)
            if verdict is not None:
                verdict.read()
            verdict, number = outcome.send(), number + 1
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    found: dict[str, Any] = {"epochs": config.epochs, "images": train, "seconds": seconds, "workers": workers}
    began = time.perf_counter()
    batches = make_val_loader(indexes["val"], size, 2 * config.batch, workers=workers, pin_memory=pin_memory)
    predictions = predict_all(training.update.ema.model, batches, config.evaluation, device, precision)
    figures = evaluate(indexes["val"], predictions, config.evaluation.max_det).figures()
    return found | {"validation_seconds": time.perf_counter() - began, "figures": figures}


def index_of(folder: Path, split: str) -> Index:
    """The index of a demo set, without its data.yaml, which needs a package to be read."""
    return load_index(
        DataSpec(folder / "data.yaml", NAMES, {split: (Entry(folder / "images" / split),)}, folder), split
    )


def table_of(results: dict[str, Any]) -> str:
    """All figures for a reader, as Markdown."""
    facts = results["machine"]
    lines = [
        f"{facts['device']}, torch {facts['torch']}, {facts['cores']} cores, {results['measured']}",
        "",
        *(f"- {'ok' if check['holds'] else 'FAILED'}: {check['check']} {check['said']}" for check in results["checks"]),
        "",
        *(f"- product of matrices, {mode}: {peak / 1e12:.3g} TFLOP/s" for mode, peak in results["peak"].items()),
        "",
        "ratios: to float32 with the same batch",
        "",
        "| model | batch | mode | step, ms | images/s | share of peak | memory, GB | time, ratio | memory, ratio |",
        "| --- " * 9 + "|",
    ]
    plain = {(row["model"], row["batch"]): row for row in results["steps"] if row["mode"] == "float32"}
    rows = [*results["steps"], *({**row, "mode": "amp + compile"} for row in results["compiled"])]
    order = {"float32": 0, "amp": 1, "amp + compile": 2}
    for row in sorted(rows, key=lambda row: (MODELS.index(row["model"]), row["batch"], order[row["mode"]])):
        cells = [row["model"], row["batch"], row["mode"]]
        if "seconds" not in row:
            lines.append(f"| {' | '.join(map(str, cells))} | {row['error']} |" + " |" * 5)
            continue
        base = plain.get((row["model"], row["batch"]), {})
        cells += [f"{1000 * row['seconds']:.1f}", f"{row['images_per_second']:.0f}", f"{row['share_of_peak']:.1%}"]
        cells += [number(row.get("gigabytes"))]
        cells += [number(row.get(name), base.get(name)) for name in ("seconds", "gigabytes")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [f"- {row['model']}: {line}" for row in results["compiled"] for line in row.get("said", [])]
    lines += ["", "| workers | training images/s from the loader |", "| --- | --- |"]
    lines += [f"| {row['workers']} | {row['images_per_second']:.0f} |" for row in results["loader"]]
    demo = results["demo"]
    lines += ["", f"demo: {demo['epochs']} epochs of {demo['images']} images in {sum(demo['seconds']):.1f} s"]
    lines[-1] += f", mAP50-95 {demo['figures']['map50_95']:.3f}, mAP50 {demo['figures']['map50']:.3f}"
    return "\n".join(lines)


def number(value: float | None, base: float | None = 1.0) -> str:
    """Two digits of a figure or of its ratio to another; a dash where there is none."""
    return "-" if value is None or not base else f"{value / base:.2f}"


if __name__ == "__main__":
    main()
