"""torch, ONNX Runtime and OpenVINO on this CPU: latency and mAP in float32, bfloat16 and int8.

    python benchmarks/runtimes.py --weights runs/demo/weights/best.safetensors --data demo/data.yaml

Latency: one image of 640 x 640 to the boxes above 0.25, before suppression, of networks with random weights, in turns;
medians. mAP50-95: the weights and data that are named, at the size of the weights. Some five minutes; keep the host
idle meanwhile. Writes results/runtimes.json and results/runtimes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from side_by_side import RESULTS, processor

from yoloyard.commands.val import index_for
from yoloyard.common.image_size import shape_of
from yoloyard.common.versions import versions
from yoloyard.config.settings import EvaluationConfig, ExportConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.export import int8, onnx_file, openvino_file
from yoloyard.export.job import Job
from yoloyard.models.registry import build
from yoloyard.models.weights import load_model, save_weights
from yoloyard.runtimes.document import read_document
from yoloyard.runtimes.exported import Exported, Program
from yoloyard.runtimes.load import load_runtime
from yoloyard.runtimes.metadata import FileFacts
from yoloyard.runtimes.runtime import Runtime

MODELS = ("yolo11n", "yolo11s", "yolov5n")
SIDE = 640  # pixels
CLASSES = 80
SHOWN = 0.25  # lowest score
WARMUPS = 3
RANGES = 8  # images that calibrate a network whose boxes nobody looks at


@dataclass(frozen=True)
class Kind:
    """A column of the tables: which library computes, and in what."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime}, {self.precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency and mAP of the runtimes on this CPU.")
    parser.add_argument("--weights", type=Path, required=True, help="weights file, trained on --data")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml: its training images calibrate int8")
    parser.add_argument("--repeats", type=int, default=20, help="turns of each runtime that count")
    arguments = parser.parse_args()
    latencies, began = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            runtimes = runtimes_of(random_weights(model, Path(folder)), SIDE, arguments.data, RANGES)
            latencies[model] = latency(runtimes, arguments.repeats)
            show(model, {kind: f"{milliseconds:.1f} ms" for kind, milliseconds in latencies[model].items()})
        metadata = load_model(arguments.weights)[1]
        trained = runtimes_of(arguments.weights, metadata["imgsz"], arguments.data, 300)
        figures = {kind: map50_95(runtime, arguments, metadata) for kind, runtime in trained.items()}
        show(arguments.weights.name, {kind: f"mAP50-95 {figure:.4f}" for kind, figure in figures.items()})
    write(latencies, figures, metadata, arguments, time.perf_counter() - began)


def random_weights(model: str, folder: Path) -> Path:
    """A weights file of a network that nobody has trained."""
    torch.manual_seed(0)
    path = folder / f"{model}.safetensors"
    names = [f"class {number}" for number in range(CLASSES)]
    facts = {"model": model, "model_arguments": {"num_classes": CLASSES}, "names": names, "imgsz": SIDE}
    save_weights(path, build(model, num_classes=CLASSES).state_dict(), facts)
    return path


def runtimes_of(weights: Path, side: int, data: Path, calibration_images: int) -> dict[Kind, Runtime]:
    """All runtimes of a weights file, for images of one size."""
    detector, metadata = load_model(weights)
    shape = shape_of(detector.input_size(side))
    facts = FileFacts("boxes", metadata["names"], detector.strides, shape, None, "float32", "", "")
    config = ExportConfig(str(weights), imgsz=side, data=str(data), calibration_images=calibration_images)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(config, weights, detector, metadata, facts, Path(folder))
        quantised = replace(job, config=replace(config, int8=True))
        onnx = onnx_file.write(job)  # first: the others are made from it
        ir = openvino_file.write(job)
        return {
            Kind("torch", "float32"): load_runtime(weights, "cpu", amp=False),
            Kind("torch", "bfloat16"): load_runtime(weights, "cpu", amp=True),
            Kind("ONNX Runtime", "float32"): load_runtime(onnx, "cpu"),
            Kind("ONNX Runtime", "int8"): load_runtime(int8.write_onnx(quantised), "cpu"),
            Kind("OpenVINO", "float32"): load_runtime(ir, "cpu"),
            Kind("OpenVINO", "bfloat16"): in_bfloat16(ir),
            Kind("OpenVINO", "int8"): load_runtime(openvino_file.write(quantised), "cpu"),
        }


def in_bfloat16(ir: Path) -> Runtime:
    """An OpenVINO file computed in bfloat16, which `load_runtime` never does."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
    }
    network = openvino.Core().compile_model(ir, "CPU", hints)
    names = ["boxes", "scores"]

    def compute(images: torch.Tensor) -> list[torch.Tensor]:
        found = network(images.contiguous().numpy())
        return [torch.from_numpy(found[name]) for name in names]

    document = read_document(ir)
    assert document is not None
    shape = [None, 3, *document["file"]["shape"]]
    return Exported(ir, Program([shape], names, compute, torch.device("cpu")), document, ())


@torch.inference_mode()
def latency(runtimes: Mapping[Kind, Runtime], repeats: int) -> dict[Kind, float]:
    """Milliseconds from one image, uint8, to boxes above SHOWN: medians of turns."""
    images = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    found: dict[Kind, list[float]] = {kind: [] for kind in runtimes}
    for turn in range(-WARMUPS, repeats):
        for kind, runtime in runtimes.items():
            began = time.perf_counter()
            runtime.candidates(images, SHOWN, multi_label=False)
            if turn >= 0:
                found[kind].append(1000 * (time.perf_counter() - began))
    return {kind: statistics.median(each) for kind, each in found.items()}


def map50_95(runtime: Runtime, arguments: argparse.Namespace, metadata: Mapping[str, Any]) -> float:
    """mAP50-95 on the validation images, all padded to one square."""
    settings = EvaluationConfig()
    index, order = index_for(runtime, read_data_yaml(arguments.data), str(arguments.weights), "val")
    assert order == sorted(order)
    side, stride = metadata["imgsz"], max(runtime.strides)
    predictions = predict_all(runtime, make_val_loader(index, side, 8, stride, fixed_shape=(side, side)), settings)
    return evaluate(index, predictions, settings.max_det).map50_95


def show(what: str, figures: Mapping[Kind, str]) -> None:
    for kind, figure in figures.items():
        print(f"{what}: {kind}: {figure}", flush=True)


def write(
    latencies: Mapping[str, Mapping[Kind, float]],
    figures: Mapping[Kind, float],
    metadata: Mapping[str, Any],
    arguments: argparse.Namespace,
    seconds: float,
) -> None:
    """Keep the figures with machine and versions, as JSON and as a table."""
    machine = f"{processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads"
    used = versions("onnx", "onnxruntime", "openvino", "nncf")
    trained = f"{metadata['model']} at {metadata['imgsz']} px"
    facts = {
        "measured": date.today().isoformat(),
        "machine": machine,
        "versions": used,
        "seconds": round(seconds),
        "side": SIDE,
        "repeats": arguments.repeats,
        "milliseconds": {model: {str(kind): each for kind, each in of.items()} for model, of in latencies.items()},
        "map50_95": {"weights": trained, **{str(kind): each for kind, each in figures.items()}},
    }
    (RESULTS / "runtimes.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"Measured on {facts['measured']}: {machine}; {', '.join(f'{name} {each}' for name, each in used.items())}.",
        f"Latency of one image of {SIDE} x {SIDE} pixels in ms, medians of {arguments.repeats} turns.",
        "",
        f"| runtime | {' | '.join(latencies)} | mAP50-95 of {trained} |",
        f"| --- | {'--- | ' * len(latencies)}--- |",
    ]
    for kind, figure in figures.items():
        lines.append(f"| {kind} | {' | '.join(f'{of[kind]:.1f}' for of in latencies.values())} | {figure:.4f} |")
    (RESULTS / "runtimes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
