"""A checkpoint holds the random numbers of all processes."""

import random
from pathlib import Path

import numpy as np
import torch

from on_device import Training
from yoloyard.training.state.checkpoint import Progress, read_header, restore, snapshot_of, write
from yoloyard.training.state.randomness import RandomNumbers, seed_all


def test_a_checkpoint_gives_each_process_its_random_numbers_back(tmp_path: Path) -> None:
    device = torch.device("cpu")
    engine = Training(device).engine
    states, drawn = [], []
    for rank in range(2):
        seed_all(rank)
        states.append(RandomNumbers(device).state_dict())
        drawn.append([torch.rand(1).item(), random.random(), np.random.random()])
    assert drawn[0] != drawn[1]
    write(snapshot_of({}, engine, Progress(), states), tmp_path / "last")
    header = read_header(tmp_path / "last")
    for rank, expected in enumerate(drawn):
        restore(header, engine, Progress(), rank)
        assert [torch.rand(1).item(), random.random(), np.random.random()] == expected
    before = torch.get_rng_state()
    restore(header, engine, Progress(), rank=2)  # of a run that had two processes
    assert torch.equal(torch.get_rng_state(), before)
