"""How many processes load images where the user doesn't say: what the cores of the container allow."""

from pathlib import Path

import pytest
import torch

from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.demo.write import write_demo
from yoloyard.models import registry
from yoloyard.training.setup import settings


@pytest.mark.parametrize(
    ("device", "cores", "processes", "workers"),
    [("cuda", 2, 1, 2), ("cuda", 1, 1, 1), ("cuda", 3, 1, 2), ("cuda", 4, 2, 2), ("cuda", 2, 4, 1), ("cpu", 16, 1, 0)],
)
def test_workers_follow_the_usable_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    spec = read_data_yaml(write_demo(tmp_path / "line", train=8, val=2, size=64))
    detector = registry.build("yolo11n", num_classes=len(spec.names))
    index = load_index(spec, "train")
    found = settings.derive(TrainConfig(batch=8), {}, detector, index, torch.device(device), processes)
    assert found.workers == workers
