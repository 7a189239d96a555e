"""Every family, exported, finds the boxes of its weights, for any batch and size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tiny_job import NAMES
from yoloyard.config.settings import ExportConfig
from yoloyard.demo.write import demo_image
from yoloyard.export import onnx_file, programs
from yoloyard.export.job import Job
from yoloyard.models import registry
from yoloyard.runtimes.load import load_runtime
from yoloyard.runtimes.metadata import FileFacts

# Untrained weights amplify rounding: in torch alone, folding the normalisations moves a box of yolov5n6, 790 pixels
# wide, by 0.08 pixels.
MAX_PIXELS = 0.2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["yolov5n6", "yolov8n", "yolov9t", "yolo11n", "yolo12n", "yolov13n", "yolo26n"])
def test_all_files_of_a_family_give_the_boxes_and_scores_of_its_weights(tmp_path: Path, model: str) -> None:
    torch.manual_seed(0)
    detector = registry.build(model, num_classes=len(NAMES))
    images = torch.from_numpy(np.stack([demo_image(0, "val", number, 256).pixels for number in range(3)]))
    images = images.permute(0, 3, 1, 2).contiguous()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # maps of every layer then depend on the image
    for parameter in detector.parameters():
        if not parameter.dim():
            parameter.data.fill_(1.0)  # a gate of YOLOv13, which begins shut
    with torch.no_grad():
        detector.train()(images / 255)
    detector.keep_path(suppression="off" not in detector.head.paths)
    facts = FileFacts("boxes", NAMES, detector.strides, None, None, "float32", "0" * 64, "0.1.0")
    metadata = {"model": model, "names": list(NAMES)}
    job = Job(ExportConfig(dynamic=True), Path("best.safetensors"), detector.eval(), metadata, facts, tmp_path)
    files = [onnx_file.write(job), programs.write_pt2(job), programs.write_torchscript(job)]
    for file in files:
        network = load_runtime(file, "cpu")
        for shape in ((3, 256, 256), (1, 128, 192)):
            some = images[: shape[0], :, : shape[1], : shape[2]]
            with torch.no_grad():
                boxes, scores = detector.decode(detector(some / 255))
            found = network.candidates(some, 0.0, multi_label=True)
            assert len(found[0]) == scores.numel() > 100
            torch.testing.assert_close(found[2], scores.flatten(), rtol=0, atol=1e-4)
            torch.testing.assert_close(
                found[1], boxes.repeat_interleave(len(NAMES), dim=1).flatten(0, 1), rtol=0, atol=MAX_PIXELS
            )
