"""A container's small /dev/shm: batches take another way, and are the same."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from yoloyard.common.pixel_spec import EIGHT_BITS
from yoloyard.common.structures import Batch
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.data.loading import limits
from yoloyard.data.loading.limits import batch_bytes, shortage
from yoloyard.data.loading.loader import make_train_loader, make_val_loader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def facts(batch: Batch) -> tuple[object, ...]:
    tensors = (batch.images, batch.boxes, batch.labels, batch.ignore)
    return *(tensor.tolist() for tensor in tensors), batch.image_ids, batch.transforms, batch.source_ids


def test_batches_through_pipes_are_those_through_shared_memory(
    index: Index, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    config = TrainConfig(batch=4, imgsz=64, workers=2)

    def batches() -> list[Batch]:
        training, validation = (
            make_train_loader(index, config),
            make_val_loader(index, 64, 4, workers=2),
        )
        return [*training.epoch(0), *validation]

    shared = batches()
    assert said == []
    monkeypatch.setattr(limits, "free_shared_memory", lambda: 1000)
    piped = batches()
    assert "go through pipes instead, which is slower. Give the container more (docker run --shm-size=8g)" in said[0]
    assert [facts(batch) for batch in piped] == [facts(batch) for batch in shared]
    assert all(batch.images.is_shared() for batch in shared)
    assert not any(batch.images.is_shared() for batch in piped)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in piped)


def test_shared_memory_is_enough_for_the_batches_of_both_loaders_and_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = batch_bytes(16, (640, 640), 0, EIGHT_BITS)
    assert batch == 16 * 3 * 640 * 640
    monkeypatch.setattr(limits, "free_shared_memory", lambda: 2 * (2 * 8 + 2) * batch)
    assert shortage(batch, workers=8) is None
    assert shortage(batch + 1, workers=8) is not None
    assert shortage(10 * batch, workers=0) is None  # made in the trainer's own process
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shortage(batch // 2, workers=8) is None
    assert "708 MB free and 1416 MB are needed for batches of 8 workers" in str(shortage(batch, workers=8))
    monkeypatch.setattr(limits, "free_shared_memory", lambda: None)  # a system without /dev/shm
    assert shortage(batch, workers=8) is None


PROGRAM = """
import pathlib, sys
from yoloyard.common.log import shown_lines
from yoloyard.config.settings import TrainConfig
from yoloyard.data.loading import limits
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.index.index import load_index
from yoloyard.data.loading.loader import make_train_loader, make_val_loader
assert limits.free_shared_memory() == 64 * 2**20
index = load_index(read_data_yaml(pathlib.Path(sys.argv[1])), "train")
config = TrainConfig(batch=16, workers=8, imgsz=640)
with shown_lines():
    training = make_train_loader(index, config)
    validation = make_val_loader(index, 640, 32, workers=8)
print(sum(len(batch.image_ids) for loader in (training.epoch(0), validation) for batch in loader))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a /dev/shm of its own")
def test_eight_workers_in_64_megabytes_end_without_a_bus_error(make_set: Callable[..., Path]) -> None:
    data = make_set(count=160)
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    ways = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])  # as root; as anybody
    way = next((w for w in ways if shutil.which("unshare") and _succeeds([*w, "sh", "-c", mount])), None)
    if way is None:
        pytest.skip("neither root nor a user namespace may mount here")
    done = subprocess.run(
        [*way, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", PROGRAM, str(data)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "320"
    assert done.stdout.count("go through pipes") == 2


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
