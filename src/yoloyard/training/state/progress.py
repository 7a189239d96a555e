"""How far a run has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """How far a run has come. Epochs are counted from 0 here; what users see begins with 1."""

    epoch: int = 0
    position: int = 0  # samples of this epoch that all processes have consumed
    bad_steps: int = 0  # in a row
    best: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0  # of training and validation up to now
    planned_epochs: int = 0  # that fit into `--time`; 0: as configured

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave. Raises TypeError if it is of something else."""
        self.__init__(**state)  # type: ignore[misc]
