"""Our side of validation.py: index, loader, forward, suppression and figures, as `yoloyard val` makes them."""

import argparse
import resource
import time
from pathlib import Path

import torch
from turns import Turns

from yoloyard.common.device import choose_precision, images_at_once
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import EvaluationConfig
from yoloyard.cpu.memory import reuse_memory
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_val_loader
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.models.importing.importers import read_checkpoint
from yoloyard.models.weights import load_model, save_weights
from yoloyard.runtimes.network import Network

IMGSZ = 640


def main() -> None:
    turns = Turns()
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    imported = Path("runs", "bench", "validation", "imported.safetensors")
    save_weights(imported, *read_checkpoint(arguments.weights))
    detector, _ = load_model(imported)
    device = torch.device("cpu")
    precision = choose_precision(device, amp=arguments.precision != "float32")
    reuse_memory(precision)  # as `yoloyard val` does
    settings = with_overrides(EvaluationConfig(), {"conf": 0.001, "iou": 0.7, "max_det": 300})
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    while turns.wait():
        began = time.perf_counter()
        index = load_index(read_data_yaml(arguments.data), "val")
        stride, at_once = max(detector.strides), images_at_once(device, IMGSZ)
        loader = make_val_loader(index, IMGSZ, arguments.batch, stride, at_once=at_once)
        predictions = predict_all(Network(detector, device, precision), loader, settings)
        metrics = evaluate(index, predictions, settings.max_det)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        turns.report(seconds=seconds, map50_95=metrics.map50_95, map50=metrics.map50, gigabytes=peak)


if __name__ == "__main__":
    main()
