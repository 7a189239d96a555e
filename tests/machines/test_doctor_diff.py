"""Two runs or machines compared: what decides results comes first, and decides the exit status."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from yoloyard.common.errors import UserError
from yoloyard.config.settings import TrainConfig, settings_of
from yoloyard.machines import environment
from yoloyard.machines.doctor.diff import Comparison, compare, load
from yoloyard.machines.environment import packages

SPLIT = {"images": 4, "boxes": 9, "skipped": 0, "sha256": "aa"}


def run(folder: Path, facts: dict[str, Any], words: str = "lr0: 0.01\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(words)
    return folder


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return environment.facts(torch.device("cpu"), "float32", {"train": SPLIT, "val": SPLIT})


def compared(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], words: str = "lr0: 0.01\n") -> Comparison:
    return compare(load(run(tmp_path / "a", first)), load(run(tmp_path / "b", second, words)))


def test_what_is_alike(tmp_path: Path, facts: dict[str, Any]) -> None:
    busy = copy.deepcopy(facts)
    busy["machine"]["memory"]["available"] = busy["machine"]["disk"]["free"] = 1  # as they happen to be
    comparison = compared(tmp_path, facts, busy, "lr0: 0.01\nname: another\nworkers: 2\n")
    assert comparison.lines() == ["they are alike"]
    assert not comparison.decides


@pytest.mark.parametrize(
    ("path", "value", "group", "decides"),
    [
        (("data", "train", "sha256"), "bb", "data set", True),
        (("git",), {"commit": "1", "diff_sha256": None}, "code", True),
        (("precision",), "bfloat16", "arithmetic", True),
        (("versions", "numpy"), "1.26", "packages that decide results", True),
        (("variables",), {"NVIDIA_TF32_OVERRIDE": "0"}, "variables", True),
        (("accelerator",), "NVIDIA A10", "GPU", False),  # the other has none to compare it with
        (("nvml", "driver"), "570.1", "driver", False),
        (("machine", "kernel"), "6.1", "machine", False),
        (("packages",), ["rich==1"], "other packages", False),
        (("command",), ["x"], "command", False),
    ],
)
def test_each_difference(
    tmp_path: Path, facts: dict[str, Any], path: tuple[str, ...], value: Any, group: str, decides: bool
) -> None:
    facts = {**facts, "git": {"commit": "0", "diff_sha256": None}}
    other = copy.deepcopy(facts)
    place = other
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    comparison = compared(tmp_path, facts, other)
    assert comparison.decides == decides
    assert set(comparison.differences) == (set() if group == "GPU" else {group})


def test_a_run_on_a_cpu_does_not_say_which_cudnn_there_is(tmp_path: Path, facts: dict[str, Any]) -> None:
    first, second = {**facts, "cudnn": 91002}, {**facts, "cudnn": 92600}
    assert "arithmetic" in compared(tmp_path, first, second).differences
    assert compared(tmp_path, first, {**facts, "cudnn": None}).lines() == ["they are alike"]


def test_settings_and_the_order_of_causes(tmp_path: Path, facts: dict[str, Any]) -> None:
    other = copy.deepcopy(facts)
    other["command"], other["data"]["val"]["sha256"], other["precision"] = ["x"], "bb", "float16"
    comparison = compared(tmp_path, facts, other, "lr0: 0.02\n")
    assert list(comparison.differences) == ["data set", "settings", "arithmetic", "command"]
    assert "  lr0: 0.01 | 0.02" in comparison.lines()


@pytest.mark.parametrize("name", sorted(settings_of(TrainConfig)))
def test_settings_that_decide_no_results(name: str, tmp_path: Path, facts: dict[str, Any]) -> None:
    run(tmp_path / "a", facts, f"{name}: 1\n")
    comparison = compare(load(tmp_path / "a"), load(run(tmp_path / "b", facts, f"{name}: 2\n")))
    undecided = {"data", "device", "exist_ok", "name", "project", "tensorboard", "wandb", "notify", "workers"}
    undecided |= {"backup", "backup_endpoint", "grace_seconds", "save_period", "save_minutes", "keep"}
    undecided |= {"checkpoint_activations", "nodes", "rendezvous"}
    assert comparison.decides == (name not in undecided)


def test_nodes_with_another_nccl(tmp_path: Path, facts: dict[str, Any]) -> None:
    one = {**facts, "nccl": "2.27.3"}
    comparison = compared(tmp_path, one, {**facts, "nccl": "2.30.7"})
    assert "NCCL 2.27.3 and 2.30.7" in comparison.problems[0]
    assert comparison.lines()[0].startswith("problem: ")
    assert compared(tmp_path, one, one).problems == []


def test_doctor_and_run_of_one_machine_are_alike(tmp_path: Path, facts: dict[str, Any]) -> None:
    seen = {"machine": facts["machine"], "nvml": facts["nvml"], "packages": packages.gather()}
    file = tmp_path / "doctor.json"
    file.write_text(json.dumps({"facts": seen, "findings": []}))
    comparison = compare(load(run(tmp_path / "a", facts)), load(file))
    assert comparison.differences == {}
    assert {"data set", "settings", "command"} <= set(comparison.missing)


def test_what_is_no_environment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*environment\.json"):
        load(tmp_path)
    file = tmp_path / "a.json"
    for text, message in (("{", "is no JSON"), ("[]", "holds neither"), ("{}", "holds neither")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load(file)


def test_the_command(tmp_path: Path, facts: dict[str, Any]) -> None:
    first = run(tmp_path / "a", facts)
    second = run(tmp_path / "b", {**facts, "precision": "bfloat16"})

    def status(one: Path, other: Path) -> tuple[int, str]:
        command = [sys.executable, "-m", "yoloyard", "doctor", "diff", str(one), str(other)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert status(first, first) == (0, "they are alike\n")
    code, output = status(first, second)
    assert code == 1
    assert "precision: float32 | bfloat16" in output
