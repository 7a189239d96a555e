"""A checkpoint holds the random numbers of all processes."""

import random
from pathlib import Path

import numpy as np
import torch

from on_device import Training
from yoloyard.training.state.checkpoint import Progress, TrainingState, read_facts, restore_checkpoint, save_checkpoint
from yoloyard.training.state.randomness import random_state, seed_all


def test_a_checkpoint_gives_each_process_its_random_numbers_back(tmp_path: Path) -> None:
    device = torch.device("cpu")
    state = TrainingState(Training(device).update, Progress(), torch.zeros(6))
    states, drawn = [], []
    for rank in range(2):
        seed_all(rank)
        states.append(random_state(device))
        drawn.append([torch.rand(1).item(), random.random(), np.random.random()])
    assert drawn[0] != drawn[1]
    save_checkpoint(tmp_path / "last", state, {}, states)
    facts = read_facts(tmp_path / "last")
    for rank, expected in enumerate(drawn):
        restore_checkpoint(tmp_path / "last", facts, state, rank)
        assert [torch.rand(1).item(), random.random(), np.random.random()] == expected
    before = torch.get_rng_state()
    restore_checkpoint(tmp_path / "last", facts, state, rank=2)  # of a run that had two processes
    assert torch.equal(torch.get_rng_state(), before)
