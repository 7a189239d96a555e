"""A run that is killed (SIGKILL) at random moments and goes on each time, beside one that nothing stops.

    python benchmarks/kills.py --kills 30
    python benchmarks/kills.py --kills 30 --backup

With `--backup` each checkpoint is copied to a file:// address, and after a kill the run folder is gone: the run goes on
from the copies. Prints how many kills it survived, how many came while a checkpoint was written or copied, the seconds
of work that each cost, and whether the final figures are equal bit for bit.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from yoloyard.demo.write import write_demo
from yoloyard.training.listeners.results import read_records

NETWORK = Path(__file__).parents[1] / "tests" / "tiny_network.py"
MOST_SECONDS = 2.0  # of training until the next kill
SIZE = 96


def killed_run(kills: int, folder: Path, epochs: int, seed: int = 0, backup: bool = False) -> dict[str, Any]:
    """Train in `folder` with and without kills; what they did. Raises RuntimeError if a run can't go on.

    `backup`: after each kill go on from the copies alone.
    """
    random_seconds = random.Random(seed)
    data = write_demo(folder / "line", seed=3, train=64, val=6, size=SIZE)
    arguments = [
        "--data", data, "--model", f"{NETWORK}:Tiny", "--imgsz", SIZE, "--batch", 4, "--epochs", epochs, "--no-amp",
        "--no-tensorboard", "--device", "cpu", "--workers", 0, "--project", folder / "runs", "--save-minutes", 1e-4,
    ]  # fmt: skip
    if start(*arguments, "--name", "whole").wait():
        raise RuntimeError("the run that nothing stops has failed")
    run, copies, survived, in_save, in_upload, lost = folder / "runs" / "killed", folder / "copies", 0, 0, 0, []
    arguments += ["--backup", f"file://{copies}"] if backup else []
    process = start(*arguments, "--name", "killed")
    while survived < kills:
        wait_for_training(process)
        began = time.time()
        time.sleep(random_seconds.uniform(0, MOST_SECONDS))
        if process.poll() is not None:
            break  # it has reached its end
        process.send_signal(signal.SIGKILL)
        process.wait()
        survived += 1
        unfinished = run / "checkpoints" / ".last.tmp"
        in_save += unfinished.exists() and unfinished.stat().st_mtime > began
        in_upload += any(run.glob(".backup/*"))
        states = [path.stat().st_mtime for path in run.glob("checkpoints/*last*/state.json") if ".tmp" not in str(path)]
        arrived = [path.stat().st_mtime for path in copies.glob("checkpoints/*.json")]
        lost.append(time.time() - max([began, *(arrived or states)]))
        if arrived:
            shutil.rmtree(run)
            process = start("--resume", f"file://{copies}", "--project", folder / "runs")
        else:
            process = start("--resume", run) if states else start(*arguments, "--name", "killed", "--exist-ok")
    for _ in process.stdout or ():
        pass
    if process.wait():
        raise RuntimeError("the run did not go on after a kill")
    whole, killed = (figures(folder / "runs" / name) for name in ("whole", "killed"))
    return {
        "kills": survived,
        "in a save": in_save,
        "in an upload": in_upload,
        "seconds lost": lost,
        "equal": whole == killed,
        "epochs": len(whole),
    }


def start(*arguments: object) -> "subprocess.Popen[str]":
    """`yoloyard train` in a process of its own."""
    command = [sys.executable, "-u", "-m", "yoloyard", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_training(process: "subprocess.Popen[str]") -> None:
    """Read its lines until it trains."""
    for line in process.stdout or ():
        if line.startswith(("training ", "going on in ")):
            return


def figures(run: Path) -> list[dict[str, float]]:
    """Losses and figures of each epoch, without what is of the clock."""
    parts = ("epoch", "train", "val", "lr", "gradient")
    return [{name: each[name] for name in each if name.split("/")[0] in parts} for each in read_records(run)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backup", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = killed_run(chosen.kills, Path(temporary), chosen.epochs, chosen.seed, chosen.backup)
    seconds = found["seconds lost"]
    print(f"{found['kills']} kills survived, {found['in a save']} of them while a checkpoint was written,")
    print(f"{found['in an upload']} while one was copied or waited to be")
    print(f"seconds of work lost per kill: mean {sum(seconds) / max(len(seconds), 1):.2f}, most {max(seconds):.2f}")
    print(f"figures of all {found['epochs']} epochs equal bit for bit: {found['equal']}")
    sys.exit(0 if found["equal"] and found["kills"] == chosen.kills else 1)
