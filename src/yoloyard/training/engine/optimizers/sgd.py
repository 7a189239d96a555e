"""SGD with Nesterov's momentum."""

from typing import Any

import torch

from yoloyard.config.settings import OptimizerConfig
from yoloyard.training.engine.optimizers.plain import plain


def build(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD, fused. Its momentum begins as zeros, not as the first gradient, which may be that of a bad step."""
    nesterov = config.momentum > 0
    optimizer = plain(torch.optim.SGD)(groups, lr=config.lr0, momentum=config.momentum, nesterov=nesterov, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
