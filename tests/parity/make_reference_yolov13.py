"""Makes tests/data/reference/yolov13.npz: what YOLOv13 here computes for formula weights and inputs.

    PYTHONPATH=tests python tests/parity/make_reference_yolov13.py

The original's package can't be had from an index. So these numbers are kept of a state whose outputs, losses and
gradients were compared with the original's (tests/data/README.md), and must be compared again before they are replaced.
"""

import numpy as np
import torch
from torch import nn

from reference import FOLDER, Outputs, formula_images, formula_state_dict, save_numbers
from yoloyard.common.boxes import xyxy_to_cxcywh
from yoloyard.models import registry

SIZES = "nslx"


def model_outputs(name: str, num_classes: int, batch: int, height: int, width: int) -> Outputs:
    """What one model says to formula images, without dropout."""
    detector = registry.build(name, num_classes)
    detector.load_state_dict(formula_state_dict(detector))
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    images = formula_images(f"{name}/{num_classes}", batch, height, width)
    with torch.no_grad():
        maps = detector.eval()(images)
        boxes_xyxy, scores = detector.decode(maps)
        training_maps = detector.train()(images)
    evaluation, training = (torch.cat([level.flatten(2) for level in each], dim=2) for each in (maps, training_maps))
    return Outputs(evaluation, training, torch.cat((xyxy_to_cxcywh(boxes_xyxy), scores), dim=2).transpose(1, 2))


def main() -> None:
    groups: dict[str, dict[str, np.ndarray]] = {}
    for size in SIZES:
        groups[f"yolov13{size}"] = {"eval": model_outputs(f"yolov13{size}", 80, 1, 64, 96).kept()["eval"]}
    groups["yolov13n_3"] = model_outputs("yolov13n", 3, 2, 128, 160).kept()
    save_numbers(FOLDER / "yolov13.npz", groups)


if __name__ == "__main__":
    main()
