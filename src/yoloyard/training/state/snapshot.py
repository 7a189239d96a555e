"""A copy in host memory of all that a run is at one moment: for a checkpoint on disk, or to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """What parts of a run had in their `state_dict`. Nothing in it changes any more, so any thread may use it."""

    tensors: dict[str, dict[str, Tensor]]  # by part, on the host
    facts: dict[str, dict[str, Any]]  # by part: whatever else it had, as JSON


def snapshot(parts: Mapping[str, Mapping[str, Any]]) -> Snapshot:
    """Copy the states of `parts` to host memory; waits for the device."""
    tensors = {
        name: {key: _on_host(value) for key, value in part.items() if isinstance(value, Tensor)}
        for name, part in parts.items()
    }
    facts = {
        name: {key: value for key, value in part.items() if not isinstance(value, Tensor)}
        for name, part in parts.items()
    }
    return Snapshot(tensors, facts)


def _on_host(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
