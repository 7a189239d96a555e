"""Random numbers of a process outside the data: dropout, and whatever a custom model draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomState = tuple[dict[str, Tensor], dict[str, Any]]  # what is kept as tensors, and as JSON


def seed_all(seed: int) -> None:
    """Seed the generators of torch (on all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> RandomState:
    """Where the generators are that a training on `device` draws from."""
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    name, keys, position, has_gauss, gauss = state
    # int64, since processes can't send each other tensors of uint32
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {"python": random.getstate(), "numpy": [name, position, has_gauss, gauss]}


def restore_random(state: RandomState, device: torch.device) -> None:
    """Put the generators back to where they were in `random_state`."""
    tensors, facts = state
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    version, internal, gauss = facts["python"]
    random.setstate((version, tuple(internal), gauss))
    name, position, has_gauss, cached = facts["numpy"]
    np.random.set_state((name, tensors["random.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
