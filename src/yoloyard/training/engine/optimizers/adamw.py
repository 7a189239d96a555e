"""AdamW. Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019)."""

from typing import Any

import torch

from yoloyard.config.settings import OptimizerConfig
from yoloyard.training.engine.optimizers.plain import plain


def build(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, fused; `momentum` is its first beta."""
    return plain(torch.optim.AdamW)(groups, lr=config.lr0, betas=(config.momentum, 0.999), fused=True)
