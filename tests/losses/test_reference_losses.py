"""Losses and gradients equal those that the reference package computed for the same maps and targets."""

import pytest
import torch

from reference import GRADIENT_STEP, loss_case, loss_case_names
from yoloyard.cpu.points_in_boxes import use_points_in_boxes
from yoloyard.losses.task_aligned import TaskAlignedLoss

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


@pytest.mark.parametrize("name", loss_case_names())
@pytest.mark.parametrize("in_boxes", [False, True])
def test_equal_to_the_reference(name: str, in_boxes: bool) -> None:
    case = loss_case(name)
    num_classes = case.maps[0].shape[1] - 64
    criterion = TaskAlignedLoss(case.strides, num_classes)
    if in_boxes:
        use_points_in_boxes(criterion)
    parts = criterion(case.maps, case.batch.boxes, case.batch.labels)
    losses = {name: gain * (parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in GAINS.items()}
    expected = {"box": case.box, "cls": case.cls, "dfl": case.dfl}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    total = torch.stack(list(losses.values())).sum() * len(case.batch.images)
    assert total.item() == pytest.approx(case.total, rel=1e-4)
    total.backward()
    gradients = torch.cat([level.grad.flatten(2) for level in case.maps if level.grad is not None], dim=2)
    scale = case.gradients.abs().max()
    assert (gradients[..., ::GRADIENT_STEP] - case.gradients).abs().max() <= 1e-4 * scale
