"""Hosts that share no disk, as folders and caches of their own: the run is on that of rank 0 alone."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from commands import TINY, TINY_NETWORK, alerts_in, start
from yoloyard.training.listeners.results import read_records

# It gives numbers that are not finite in the 6th to 8th forward of a training, after the first epoch has been saved.
DIVERGING = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("tiny", {TINY_NETWORK.rpartition(":")[0]!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
steps = 0

class Own(tiny.Tiny):
    def forward(self, images):
        global steps
        steps += self.training
        maps = super().forward(images)
        return [each * float("nan") for each in maps] if self.training and 6 <= steps <= 8 else maps
"""
OWN = [word if word != TINY_NETWORK else "my_model.py:Own" for word in TINY]


def start_on_two_hosts(folders: list[Path], *words: object) -> "list[subprocess.Popen[str]]":
    """The same command in both folders, as processes of a run that have no launcher."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = []
    for rank, folder in enumerate(folders):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": str(port), "YOLOYARD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        running.append(start(*words, cwd=folder, variables=variables))
    return running


@pytest.fixture
def folders(data: Path, tmp_path: Path) -> list[Path]:
    """The folders of two hosts, each with the data at another place below it."""
    for name in ("a", "b"):
        shutil.copytree(data.parent, tmp_path / name / "line")
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.slow
def test_a_run_starts_rolls_back_ends_and_goes_on_with_its_folder_on_one_host(folders: list[Path]) -> None:
    (folders[0] / "my_model.py").write_text(DIVERGING)  # the other host gets it from there
    words = ["--data", "line/data.yaml", "--lr0", 0.01, "--warmup-epochs", 0]
    running = start_on_two_hosts(folders, "train", *words, "--epochs", 2, "--name", "apart", *OWN)
    (out, err), (silence, other) = (each.communicate(timeout=120) for each in running)
    assert [each.returncode for each in running] == [0, 0], err + other
    assert "rolled-back" in [alert["alert"] for alert in alerts_in(folders[0] / "runs" / "apart")]
    assert out.count("epoch 2/2") == 1
    assert "epoch" not in silence  # gloo of torch 2.8 has a line of its own
    running = start_on_two_hosts(folders, "train", "--resume", "--epochs", 3, "--data", "line/data.yaml")
    (out, err), (silence, other) = (each.communicate(timeout=120) for each in running)
    assert [each.returncode for each in running] == [0, 0], err + other
    assert "going on in epoch 3" in out
    assert [record["epoch"] for record in read_records(folders[0] / "runs" / "apart")] == [1, 2, 3]
    assert sorted(path.name for path in folders[1].iterdir()) == ["cache", "line"]


@pytest.mark.slow
def test_hosts_train_on_tiles_of_the_same_images_and_go_on(folders: list[Path]) -> None:
    words = ["--data", "line/data.yaml", "--tile", 64]
    for goes_on in (["--epochs", 1, "--name", "apart", *TINY], ["--resume", "--epochs", 2]):
        running = start_on_two_hosts(folders, "train", *words, *goes_on)
        (_, err), (_, other) = (each.communicate(timeout=120) for each in running)
        assert [each.returncode for each in running] == [0, 0], err + other
        words = words[:2]
    assert [record["epoch"] for record in read_records(folders[0] / "runs" / "apart")] == [1, 2]


@pytest.mark.slow
def test_a_host_with_other_data_is_named_before_the_first_step(folders: list[Path]) -> None:
    labels = max((folders[1] / "line" / "labels" / "val").iterdir(), key=lambda path: path.stat().st_size)
    labels.write_text("")
    running = start_on_two_hosts(folders, "train", "--data", "line/data.yaml", "--epochs", 1, *TINY)
    errors = "".join(each.communicate(timeout=60)[1] for each in running)
    assert [each.returncode for each in running] == [1, 1], errors
    assert errors.count("yoloyard:") == 1
    assert f"process 1 of 2 on {os.uname().nodename} (" in errors
    assert "the val split of" in errors
