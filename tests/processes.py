"""A function run in several processes that are a team, as torchrun would start them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from yoloyard.training.distributed.collectives import Team


def run_together(count: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """`work(*arguments)` in `count` new processes with one thread each; their results by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_run, args=(rank, count, port, results, work, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    failed = [text for succeeded, text in found.values() if not succeeded]
    assert not failed, "\n".join(failed)
    return [found[rank][1] for rank in range(count)]


def _run(rank: int, count: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple[object]) -> None:
    if count > 1:
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        import torch

        torch.set_num_threads(1)
        results.put((rank, (True, work(*arguments))))
    except BaseException:  # noqa: BLE001  # whatever it is, the test must hear of it
        results.put((rank, (False, traceback.format_exc())))


def join_team(device: "torch.device", hang_timeout: float = 60.0) -> "Team":
    """The team that this process is one of, which can exchange at once."""
    from yoloyard.training.distributed.collectives import connect, meet_team

    team = meet_team(hang_timeout)
    connect(team, device)
    return team


def gradients_of(detector: "nn.Module") -> "dict[str, np.ndarray]":
    """A copy of what was added up since the last update, by the parameter's name."""
    named = detector.named_parameters()
    return {name: parameter.grad.numpy().copy() for name, parameter in named if parameter.grad is not None}
