"""Checkpoints: everything that is needed to go on as if nothing had happened, as safetensors and JSON.

A checkpoint is a folder that is replaced whole. Whatever can't be restored raises.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.common.files import whole_folder, write_whole_folder
from yoloyard.training.engine.step import Update
from yoloyard.training.spec import RunSpec
from yoloyard.training.state.randomness import RandomState, restore_random

FORMAT = 2


@dataclass
class Progress:
    """How far a run has come. Epochs are 0-based here; what users see begins with 1."""

    epoch: int = 0
    position: int = 0  # samples of this epoch that all processes have consumed
    last_update: int = -1  # batch number of the last optimizer update
    bad_steps: int = 0  # in a row
    best: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0  # of training and validation up to now
    planned_epochs: int = 0  # that fit into `--time`; 0: as configured


@dataclass(frozen=True)
class Header:
    """The JSON part of a checkpoint."""

    spec: RunSpec
    progress: Progress
    facts: dict[str, Any]  # all of it


@dataclass
class TrainingState:
    """What changes while a run goes on."""

    update: Update
    progress: Progress
    sums: Tensor  # (parts + 3,): of the epoch's losses, its finite batches, gradient norms, finite updates


def save_checkpoint(
    folder: Path, state: TrainingState, run_facts: Mapping[str, Any], random_states: Sequence[RandomState]
) -> None:
    """Write everything into `folder`, whole or not at all; `run_facts` are kept as they are, for `read_facts`.

    `random_states` are those of all processes by rank. Raises UserError if the disk is full or not writable.
    """
    update = state.update
    tensors = {
        "model": dict(update.model.state_dict()),
        "ema": dict(update.ema.model.state_dict()) | {"ema.updates": update.ema.updates},
        "optimizer": _optimizer_tensors(update.optimizer),
        "gradients": {name: p.grad for name, p in update.model.named_parameters() if p.grad is not None},
        "run": {
            "sums": state.sums,
            "good_statistics": update.good_statistics,
            "losses_finite": update.losses_finite,
            **{
                _of_rank(rank, name): value
                for rank, (own, _) in enumerate(random_states)
                for name, value in own.items()
            },
        },
    }
    facts = {
        "format": FORMAT,
        "progress": dataclasses.asdict(state.progress),
        **run_facts,
        "scaler": update.scaler.state_dict(),
        **{_of_rank(rank, "random"): facts for rank, (_, facts) in enumerate(random_states)},
    }

    def write(temporary: Path) -> None:
        for name, group in tensors.items():
            content = {key: _plain(value) for key, value in group.items()}
            (temporary / f"{name}.safetensors").write_bytes(safetensors.torch.save(content))
        (temporary / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    write_whole_folder(folder, write)


def copy_checkpoint(folder: Path, copy: Path, keep: int) -> None:
    """Keep `folder` under the name `copy`, epoch-N, and of those up to this number the last `keep`."""

    def link_all(temporary: Path) -> None:
        for file in folder.iterdir():
            _link(file, temporary / file.name)

    write_whole_folder(copy, link_all)
    numbers = {path: path.name.removeprefix("epoch-") for path in copy.parent.glob("epoch-*")}
    epochs = {path: int(number) for path, number in numbers.items() if number.isdecimal()}
    # A higher number is of an earlier run in this folder (--exist-ok).
    former = sorted((path for path in epochs if epochs[path] <= epochs[copy]), key=epochs.__getitem__)
    for old in former[:-keep]:
        shutil.rmtree(old)


def read_facts(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint, which may be about to be replaced. Changes nothing.

    Raises UserError if there is none or if it is another version's.
    """
    try:
        facts: dict[str, Any] = json.loads((whole_folder(folder) / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"there is no whole checkpoint in {folder} ({error}); start the run again") from error
    if facts.get("format") != FORMAT:
        raise UserError(f"{folder} has checkpoint format {facts.get('format')}, this version reads {FORMAT}")
    return facts


def read_header(folder: Path) -> Header:
    """The JSON part of a checkpoint, which may be about to be replaced. Changes nothing.

    Raises UserError if there is none or if it is another version's.
    """
    facts = read_facts(folder)
    return Header(RunSpec.from_json(facts), Progress(**facts["progress"]), facts)


def restore_checkpoint(folder: Path, facts: Mapping[str, Any], state: TrainingState, rank: int = 0) -> None:
    """Put everything of `folder` back into `state`, and the random numbers of process `rank`.

    These stay as they are where fewer processes have made the checkpoint. Raises UserError if a part is missing or
    does not fit.
    """
    update = state.update
    device = state.sums.device
    try:
        run = _read(folder, "run")
        update.model.load_state_dict(_read(folder, "model"))
        averages = _read(folder, "ema")
        update.ema.updates.copy_(averages.pop("ema.updates"))
        update.ema.model.load_state_dict(averages)
        _load_optimizer(update.optimizer, _read(folder, "optimizer"))
        gradients = _read(folder, "gradients")
        for name, parameter in update.model.named_parameters():
            parameter.grad = _laid_out_as(parameter, gradients[name]) if name in gradients else None
        _restore_scaler(update, facts["scaler"])
        update.good_statistics = run["good_statistics"].to(update.good_statistics.device)
        update.losses_finite = run["losses_finite"].to(device)
        state.sums = run["sums"].to(device)
        state.progress = Progress(**facts["progress"])
        if _of_rank(rank, "random") in facts:
            prefix = _of_rank(rank, "random.")
            tensors = {
                f"random.{name.removeprefix(prefix)}": value for name, value in run.items() if name.startswith(prefix)
            }
            restore_random((tensors, facts[_of_rank(rank, "random")]), device)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"the checkpoint {folder} can't be restored: {error}") from error


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load((folder / f"{name}.safetensors").read_bytes())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state of each parameter back. Fused optimizers want it laid out in memory like the parameter.

    A parameter that has never had a gradient has no state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    if state and max(state) >= len(parameters):
        raise ValueError(f"it holds the optimizer state of {max(state) + 1} parameters, not of {len(parameters)}")
    for position, entry in state.items():
        parameter = parameters[position]
        optimizer.state[parameter] = {
            name: _laid_out_as(parameter, value) if value.shape == parameter.shape else value.to(parameter.device)
            for name, value in entry.items()
        }


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} does not fit a parameter of {tuple(parameter.shape)}")
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _restore_scaler(update: Update, saved: dict[str, Any]) -> None:
    """The scaler's state. On a device with another precision, pending gradients are brought to its scale."""
    if saved and update.scaler.is_enabled():
        update.scaler.load_state_dict(saved)
    ratio = update.scaler.get_scale() / saved.get("scale", 1.0)
    if ratio != 1:
        for parameter in update.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= ratio


def _of_rank(rank: int, name: str) -> str:
    """How a checkpoint calls what it keeps of a process."""
    return f"rank-{rank}.{name}" if rank else name


def _link(source: Path, target: Path) -> None:
    """Files of a checkpoint are never changed in place, so two checkpoints may share them."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
