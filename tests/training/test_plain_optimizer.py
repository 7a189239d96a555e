"""Optimizers without torch's compiler compute what torch's own compute, and don't import it."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from yoloyard.training.engine.optimizers.plain import plain


def trained(optimizer: Any, **settings: float) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}]
    made = optimizer(groups, lr=0.1, **settings)
    for step in range(5):
        layer(torch.full((2, 4), step + 1.0)).square().sum().backward()
        made.step()
        made.zero_grad()
        made.load_state_dict(made.state_dict())
    return layer.weight.detach(), made.state_dict()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_it_computes_the_same(optimizer: type[torch.optim.Optimizer]) -> None:
    settings = {"weight_decay": 0.01, "fused": True}
    (weight, state), (expected, expected_state) = trained(plain(optimizer), **settings), trained(optimizer, **settings)
    assert torch.equal(weight, expected)
    assert state["param_groups"] == expected_state["param_groups"]


def test_the_compiler_is_not_imported() -> None:
    code = """
import sys, torch
from yoloyard.training.engine.optimizers.plain import plain
layer = torch.nn.Linear(2, 2)
made = plain(torch.optim.AdamW)(layer.parameters(), fused=True)
layer(torch.ones(1, 2)).sum().backward()
made.step()
made.zero_grad()
made.state_dict()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
