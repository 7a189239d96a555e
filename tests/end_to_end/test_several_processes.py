"""One run in several processes, from the command line: it starts, resumes, stops, and says who failed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import yoloyard as package
from commands import TINY, Command, not_ignored, start
from yoloyard.common.errors import UsageError
from yoloyard.training.listeners.results import read_records
from yoloyard.training.state.checkpoint import read_header

TWO = [*TINY, "--processes", "2", "--hang-timeout", "4"]
# Blocked as behind a kernel of a GPU: in C code that no signal and no closed connection ends.
BLOCKED = "import ctypes; c = ctypes.CDLL(None); m = bytes(64); c.pthread_mutex_lock(m); c.pthread_mutex_lock(m)"

# A network that goes wrong in one process at the start of its fifth training step.
FAILING = """
import os, time
from yoloyard.models import yolo11

def build(num_classes):
    detector = yolo11.build("n", num_classes)
    steps = 0

    def count(module, inputs):
        nonlocal steps
        steps += module.training
        if steps == 5 and os.environ.get("RANK") == "1":
            ACTION
        if steps == 5:
            OTHERWISE

    detector.register_forward_pre_hook(count)
    return detector
"""


def records(run: str) -> list[dict[str, float]]:
    return read_records(Path("runs", run))


@pytest.mark.slow
def test_two_processes_train_resume_and_speak_once(data: Path) -> None:
    done = start("train", "--data", data, "--epochs", 2, "--name", "two", *TWO)
    out, err = done.communicate()
    assert (done.returncode, err) == (0, ""), err
    assert out.count("epoch 1/2") == out.count("epoch 2/2") == out.count("report.html") == 1
    assert yaml.safe_load(Path("runs/two/config.yaml").read_text())["processes"] == 2
    more = start("train", "--resume", "runs/two", "--epochs", 3)
    out, err = more.communicate()
    assert (more.returncode, err) == (0, ""), err
    assert "going on in epoch 3" in out
    assert "2 x cpu" in out
    assert [record["epoch"] for record in records("two")] == [1, 2, 3]
    assert Path("runs/two/report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--processes", "3"], "can't be shared evenly by 3 processes", marks=pytest.mark.slow),
        (["--device", "0,1"], "there is no device"),
        (["--device", "cpu,cpu", "--processes", "3"], "leave one out"),
        (["--sync-bn"], "--sync-bn is for GPUs"),
        (["--time", "inf"], "must be a finite number"),
        (["--name", "../elsewhere"], "must be a plain name"),
    ],
)
def test_what_can_not_be_shared_is_a_usage_error(data: Path, yoloyard: Command, words: list[str], message: str) -> None:
    tiny = TINY[: TINY.index("--device")] if "--device" in words else TINY
    code, _, err = yoloyard("train", "--data", data, *tiny, *words)
    assert code == 2
    assert message in err
    assert err.count("yoloyard:") == 1
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_from_python_the_command_to_use_is_named(data: Path) -> None:
    with pytest.raises(UsageError, match=r"yoloyard train --data=.*--imgsz=64x96 .*--processes=2"):
        package.train(data=str(data), imgsz="64x96", device="cpu", processes=2)


@pytest.mark.slow
def test_a_placed_model_goes_on_in_two_processes_and_back(data: Path) -> None:
    ways = {"placement": "training tiny_network.py:Tiny on cpu in", "ddp": "on 2 x cpu in"}
    words: list[object] = ["--data", data, "--name", "placed", "--device", "cpu,cpu", *TINY[: TINY.index("--device")]]
    for epochs, strategy in enumerate(["placement", "ddp", "placement"], 1):
        done = start("train", "--strategy", strategy, "--epochs", epochs, *words)
        out, err = done.communicate()
        assert (done.returncode, err) == (0, ""), err
        assert ways[strategy] in out
        assert ("placement: stem to " in out) == (strategy == "placement")
        words = ["--resume", "runs/placed"]
    assert [record["epoch"] for record in records("placed")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sigusr1_to_the_launcher_saves_in_the_middle_of_an_epoch_and_training_goes_on(
    data: Path, strategy: str
) -> None:
    action = "os.kill(os.getppid(), 10)"
    Path("my_model.py").write_text(FAILING.replace("ACTION", action).replace("OTHERWISE", "pass"))
    tiny = [*TWO, "--model", "my_model.py:build"]
    done = start("train", "--data", data, "--epochs", 2, "--name", "two", *tiny[2:], "--strategy", strategy)
    _, err = done.communicate()
    assert (done.returncode, err) == (0, "")
    progress = [read_header(Path(f"runs/two/checkpoints/{name}")).progress for name in ("previous", "last")]
    assert [each.epoch for each in progress] == [1, 2]
    assert progress[0].position > 0


@pytest.mark.slow
def test_with_shards_a_process_without_memory_for_its_images_ends_the_run_with_a_line(data: Path) -> None:
    action = 'raise RuntimeError("can\'t allocate memory")'
    Path("my_model.py").write_text(FAILING.replace("ACTION", action).replace("OTHERWISE", "pass"))
    words = ["--data", data, "--epochs", 9, "--model", "my_model.py:build", *TWO[2:], "--strategy", "fsdp"]
    run = start("train", *words)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert err.count("yoloyard:") == 1, err
    assert "too little memory; --strategy fsdp allows no parts: lower --batch" in err
    assert read_header(Path("runs/line/checkpoints/last")).progress.epoch == 1


@pytest.mark.slow
def test_torchrun_starts_it_as_well(data: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "yoloyard"]
    words = ["train", "--data", data, "--epochs", 1, *TINY]
    done = subprocess.run([*torchrun, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("raise ValueError('broken belt')", "`raise ValueError('broken belt')`): ValueError: broken belt"),
        ("os.kill(os.getpid(), 9)", "process 1, last seen at epoch 2, step 1, was killed or hangs"),
        ("time.sleep(1000)", "process 1, last seen at epoch 2, step 1, was killed or hangs"),
        ("os.kill(os.getpid(), 19)", "process 1, last seen at epoch 2, step 1, was killed or hangs"),
    ],
)
def test_a_process_that_fails_ends_the_run_and_is_named(data: Path, action: str, says: str) -> None:
    Path("my_model.py").write_text(FAILING.replace("ACTION", action).replace("OTHERWISE", "pass"))
    words = ["--data", data, "--epochs", 9, "--model", "my_model.py:build", *TWO[2:]]
    run = start("train", *words)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert says in err
    assert "process 1" in err
    assert err.count("epoch 2, step 1") <= 2
    header = read_header(Path("runs/line/checkpoints/last"))  # whole, and of the epoch before
    assert header.progress.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("action", ["os.kill(os.getpid(), 9)", BLOCKED])
def test_the_line_comes_from_a_process_that_is_blocked_itself(data: Path, action: str) -> None:
    Path("my_model.py").write_text(FAILING.replace("ACTION", action).replace("OTHERWISE", BLOCKED))
    run = start("train", "--data", data, "--epochs", 9, "--model", "my_model.py:build", *TWO[2:])
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    lines = [line for line in err.splitlines() if "the run ends at" in line]
    assert len(lines) == 1, err
    if action == BLOCKED:  # both are at the same place, as for them it is the other one that does not come
        assert "the processes can't reach each other" in lines[0]
    else:
        assert lines[0].startswith("yoloyard: process 1, last seen at epoch 2, step 1, was killed or hangs")
    assert "go on with yoloyard train --resume runs/line" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_at_the_same_step(data: Path, number: signal.Signals) -> None:
    run = start("train", "--data", data, "--epochs", 500, "--name", "stopped", *TWO)
    assert run.stdout is not None
    while "epoch 2/" not in run.stdout.readline():
        pass
    os.kill(run.pid, number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert err.count("everything is saved") == 1
    assert read_header(Path("runs/stopped/checkpoints/last")).progress.epoch >= 2


@pytest.mark.slow
def test_a_time_limit_sets_the_number_of_epochs(data: Path, yoloyard: Command) -> None:
    words = ["--time", 0.0008, "--name", "timed", "--warmup-epochs", 0, "--lr0", 0.01, *TINY]
    code, out, err = yoloyard("train", "--data", data, *words)
    assert code == 0, err
    count = len(records("timed"))
    assert 1 <= count < 100
    assert f"of {count}" in out
    # as the last epoch of a run of so many
    assert records("timed")[-1]["lr/weight"] == pytest.approx(0.01 * (0.99 * (1 - (count - 1) / count) + 0.01))


@pytest.mark.slow
def test_the_time_of_a_part_of_an_epoch_counts(data: Path) -> None:
    with not_ignored(signal.SIGHUP):
        run = start("train", "--data", data, "--epochs", 500, "--val-period", 200, "--name", "stopped", *TINY)
    assert run.stdout is not None
    while "epoch 2/" not in run.stdout.readline():
        pass
    os.kill(run.pid, signal.SIGHUP)  # as when the terminal is closed
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGHUP, err
    progress = read_header(Path("runs/stopped/checkpoints/last")).progress
    assert progress.seconds > sum(record["speed/seconds"] for record in records("stopped"))
    fewer = start("train", "--resume", "runs/stopped", "--epochs", 1)
    assert "would be fewer" in fewer.communicate()[1]
    # nothing was validated yet, and a weight file of the run names the run as well
    last = start("train", "--resume", "runs/stopped/weights/last.safetensors", "--epochs", progress.epoch + 1)
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert Path("runs/stopped/report.html").exists()
    assert Path("runs/stopped/weights/best.safetensors").exists()


@pytest.mark.slow
def test_lists_in_a_settings_file_reach_the_processes(data: Path) -> None:
    Path("my.yaml").write_text(f"data: {data}\nclasses: [scratch, stain]\ndevice: [cpu, cpu]\nepochs: 1\n")
    done = start("train", "--config", "my.yaml", *TINY[: TINY.index("--device")])
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert "classes scratch, stain alone" in out
    assert "2 x cpu" in out


def test_validation_comes_every_few_epochs_and_at_the_end(data: Path, yoloyard: Command) -> None:
    code, _, err = yoloyard("train", "--data", data, "--epochs", 5, "--val-period", 2, "--name", "rare", *TINY)
    assert code == 0, err
    assert [record["epoch"] for record in records("rare") if "val/map50" in record] == [2, 4, 5]
    assert Path("runs/rare/report.html").exists()
