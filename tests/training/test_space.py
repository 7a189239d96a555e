"""A run says how much disk it needs before it begins."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yoloyard.config.overrides import with_overrides
from yoloyard.demo.write import write_demo
from yoloyard.training.setup.setup import new_run
from yoloyard.training.setup.space import needed_bytes, tell_space

TINY_NETWORK = f"{Path(__file__).parents[1] / 'tiny_network.py'}:Tiny"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    data = write_demo(tmp_path / "line", seed=3, train=8, val=2, size=64)
    given = {"data": str(data), "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "project": str(tmp_path / "runs")}
    return new_run(given, torch.device("cpu"), "float32", 1)


def test_more_copies_and_a_cache_need_more(setup: Any) -> None:
    def needed(**words: Any) -> dict[str, int]:
        return needed_bytes(replace(setup, spec=replace(setup.spec, config=with_overrides(setup.config, words))))

    usual = needed()
    state = sum(4 * value.numel() for value in setup.detector.state_dict().values())
    assert state <= usual["weights"] // 3 <= 2 * state
    assert needed(save_period=0)["checkpoints"] * 2 == usual["checkpoints"]  # three copies beside three
    assert needed(tensorboard=False)["TensorBoard"] == usual["decoded images"] == 0
    assert needed(cache="disk")["decoded images"] == 8 * 3 * 64 * 64


def test_too_little_room_is_a_warning(setup: Any, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    tell_space(setup)
    assert len(said) == 1
    assert said[0].startswith("the run needs up to ")
    assert "checkpoints" in said[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    tell_space(setup)
    assert said[2].startswith(f"warning: only 1.0 MB are free in {setup.folder}: make room")
