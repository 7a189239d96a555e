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


class RandomNumbers:
    """The generators that a training on `device` draws from in this process. They are the process's own, not ours."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        """Where the generators are: tensors, and for the rest JSON."""
        state = np.random.get_state(legacy=True)
        assert isinstance(state, tuple)
        name, keys, position, has_gauss, gauss = state
        found: dict[str, Any] = {"python": random.getstate(), "numpy": [name, position, has_gauss, gauss]}
        # int64, since processes can't send each other tensors of uint32
        found |= {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
        if self._device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self._device)
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the generators back to where they were. Raises KeyError if one is missing."""
        torch.set_rng_state(state["random.torch"])
        if "random.cuda" in state and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random.cuda"], self._device)
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, state["random.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
