"""Random numbers of a process outside the data: dropout, and whatever a custom model draws."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the generators of torch (on all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the generators are that a training on `device` draws from: tensors, and for the rest JSON."""
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    name, keys, position, has_gauss, gauss = state
    found: dict[str, Any] = {"python": random.getstate(), "numpy": [name, position, has_gauss, gauss]}
    # int64, since processes can't send each other tensors of uint32
    found |= {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
    return found | ({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back to where they were in `random_state`. Raises KeyError if one is missing."""
    torch.set_rng_state(state["random.torch"])
    if "random.cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random.cuda"], device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, state["random.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
