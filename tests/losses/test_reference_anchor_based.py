"""Anchor-based losses and gradients equal those that the reference package computed for the same maps and targets."""

import pytest
import torch

from reference import ANCHOR_BASED_GAINS, anchor_based_loss_case, anchor_based_loss_case_names
from yoloyard.losses.anchor_based import AnchorBasedLoss


@pytest.mark.parametrize("name", anchor_based_loss_case_names())
def test_equal_to_the_reference(name: str) -> None:
    case = anchor_based_loss_case(name)
    criterion = AnchorBasedLoss(case.anchors, case.strides, case.num_classes, class_weights=None, **case.options)
    parts = criterion(case.maps, case.boxes, case.labels)
    losses = {
        name: gain * (parts[name][0] / parts[name][1].clamp(min=1)).sum() for name, gain in ANCHOR_BASED_GAINS.items()
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(case.losses, rel=1e-5, abs=1e-6)
    total = torch.stack(list(losses.values())).sum() * len(case.boxes)
    assert total.item() == pytest.approx(case.total, rel=1e-5)
    total.backward()
    gradients = torch.cat([level.grad.flatten(2) for level in case.maps if level.grad is not None], dim=2)
    scale = case.gradients.abs().max()
    assert (gradients - case.gradients).abs().max() <= 1e-5 * scale
