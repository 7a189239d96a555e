"""SGD with Nesterov's momentum."""

from typing import Any

import torch

from yoloyard.config.settings import OptimizerConfig
from yoloyard.training.engine.optimizers.plain import is_sharded, plain

SGD = plain(torch.optim.SGD)


def build(
    groups: list[dict[str, Any]], config: OptimizerConfig, kind: type[torch.optim.SGD] = SGD
) -> torch.optim.Optimizer:
    """SGD, fused but for shards, which torch can't. Its momentum begins as zeros, not as the first gradient.

    That one may be of a bad step. `kind`: SGD itself, or what is made of it.
    """
    fused = not any(is_sharded(parameter) for group in groups for parameter in group["params"])
    options: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.momentum > 0, "fused": fused}
    optimizer = kind(groups, lr=config.lr0, **options)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
