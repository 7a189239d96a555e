"""Runs with too little memory, with a batch that is found, and with maps that are computed again."""

import json
from pathlib import Path

import pytest
import yaml

from commands import TINY, Command, start
from yoloyard.training.state.checkpoint import read_header

# The tiny network on a device that holds the maps of TRAINING images in training and of EVALUATION in validation, after
# the first EARLIER forwards in training.
NETWORK = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("tiny", "{Path(__file__).parents[1] / "tiny_network.py"}")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

class Small(tiny.Tiny):
    forwards = 0

    def forward(self, images):
        Small.forwards += self.training
        few = Small.forwards > EARLIER if self.training else Small.forwards
        if few and len(images) > (TRAINING if self.training else EVALUATION):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(images)
"""
WORDS = [word for word in TINY if not word.endswith(":Tiny")][1:]
SMALL = ["--model", "my_model.py:Small", *WORDS]


def write_network(training: int, evaluation: int = 100, earlier: int = 0) -> None:
    network = NETWORK.replace("TRAINING", str(training)).replace("EVALUATION", str(evaluation))
    Path("my_model.py").write_text(network.replace("EARLIER", str(earlier)))


def figures(run: str) -> dict[str, float]:
    last = json.loads(Path("runs", run, "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in last.items() if name.startswith(("train/", "val/"))}


def test_a_run_goes_on_with_fewer_images_at_once_and_so_does_a_resumed_one(data: Path, yoloyard: Command) -> None:
    write_network(training=1)
    code, out, err = yoloyard("train", "--data", data, "--epochs", 1, "--name", "small", *SMALL)
    assert code == 0, err
    said = out + err
    assert said.count("out of memory: from here on a step computes at most 1 images at a time") == 1
    header = read_header(Path("runs/small/checkpoints/last"))
    assert header.facts["engine"]["micro_batch"] == 1
    code, out, err = yoloyard("train", "--resume", "runs/small", "--epochs", 2)
    assert code == 0, err
    assert "out of memory" not in out + err
    assert read_header(Path("runs/small/checkpoints/last")).facts["engine"]["micro_batch"] == 1


def test_validation_in_parts_and_maps_that_are_computed_again_change_no_figure(data: Path, yoloyard: Command) -> None:
    found = []
    for name, evaluation, words in (("plain", 100, ()), ("less", 2, ["--checkpoint-activations"])):
        write_network(100, evaluation)
        code, out, err = yoloyard("train", "--data", data, "--epochs", 1, "--name", name, *SMALL, *words)
        assert code == 0, err
        said = (out + err).count("out of memory in the validation: it goes on with 2 images at a time")
        assert said == (1 if name == "less" else 0)
        found.append(figures(name))
    assert found[0] == found[1]


def test_one_image_that_is_too_much_ends_the_run_with_everything_saved(data: Path, yoloyard: Command) -> None:
    write_network(training=0)
    code, _, err = yoloyard("train", "--data", data, "--epochs", 1, "--name", "none", *SMALL)
    assert code == 1
    assert "too little memory, even for one image at a time: lower --imgsz" in err
    progress = read_header(Path("runs/none/checkpoints/last")).progress
    assert (progress.epoch, progress.position) == (0, 0)
    write_network(training=100, evaluation=0)
    code, _, err = yoloyard("train", "--data", data, "--epochs", 1, "--name", "val", *SMALL)
    assert code == 1
    assert "too little memory, even for one image at a time: lower --imgsz" in err
    progress = read_header(Path("runs/val/checkpoints/last")).progress
    assert (progress.epoch, progress.position) == (0, 16)  # all batches of the epoch; its validation is left


@pytest.mark.slow
def test_two_processes_with_too_little_memory_end_with_a_line_and_all_saved(data: Path) -> None:
    write_network(training=1)
    run = start("train", "--data", data, "--epochs", 1, "--name", "two", *SMALL, "--processes", 2)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert (out + err).count("out of memory: from here on a step computes at most 1 images at a time") == 1
    ends = {"first": (100, 0, None), "later": (100, 1, (0, 12)), "val": (0, 9, (0, 16))}
    for name, (evaluation, earlier, expected) in ends.items():
        write_network(0, evaluation, earlier)
        run = start("train", "--data", data, "--epochs", 1, "--name", name, *SMALL, "--processes", 2)
        _, err = run.communicate(timeout=120)
        assert run.returncode == 1
        assert err.count("even for one image at a time: lower --imgsz") == 1
        last = Path("runs", name, "checkpoints", "last")
        if expected is None:  # nothing was learned yet
            assert not last.exists()
        else:
            progress = read_header(last).progress
            assert (progress.epoch, progress.position) == expected


def test_on_a_cpu_batch_auto_means_nothing_and_is_16(data: Path, yoloyard: Command) -> None:
    pytest.importorskip("pydantic")  # once it is imported, it checks the values of flags
    tiny = [word for word in TINY if word not in ("--batch", "4")]
    code, out, err = yoloyard("train", "--data", data, "--epochs", 1, "--batch", "auto", "--name", "auto", *tiny)
    assert code == 0, err
    assert "batch auto means nothing on a CPU: 16 is used" in out, out + err
    assert yaml.safe_load(Path("runs/auto/config.yaml").read_text())["batch"] == 14  # the set has no more images
