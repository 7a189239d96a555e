"""Behaves like `yoloyard train`, in a few milliseconds: `made_up_training.py train --config=FILE [--resume=RUN]`.

The file `behaviour` in the job's folder has a word for each start, of which the last one holds on:

    runs N      N steps, then it is finished
    hangs N     N steps, then nothing, whatever comes
    killed N    N steps, a save if there were any, then SIGKILL, as by a system that lacks memory
    fails N     N steps, then an error of the user's (exit status 1)
    wrong       exit status 2
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

settings = json.loads(Path(sys.argv[2].partition("=")[2]).read_text())
job = Path(os.environ["YOLOYARD_JOB"])
run = Path(settings["project"], settings["name"])
with (job / "starts").open("a") as file:
    file.write(" ".join(sys.argv[3:]) + "\n")
words = (job / "behaviour").read_text().splitlines()
kind, _, count = words[min(len((job / "starts").read_text().splitlines()), len(words)) - 1].partition(" ")
STARTED = time.time_ns()


def tell(state: str, step: int, reason: str = "") -> None:
    """Write status.json."""
    content = {"state": state, "reason": reason, "host": os.uname().nodename, "pid": os.getpid(), "started": STARTED}
    content |= {"updated": "2026-01-01T00:00:00+00:00", "seconds": step, "epoch": 1, "epochs": 1, "step": step}
    (run / "status.json.tmp").write_text(json.dumps(content | {"steps": 100}))
    (run / "status.json.tmp").replace(run / "status.json")


def save(step: int) -> None:
    """Write a checkpoint."""
    folder = run / "checkpoints/last"
    folder.mkdir(parents=True, exist_ok=True)
    state = json.dumps({"progress": {"epoch": 0, "position": step}}).encode()
    (folder / "state.json").write_bytes(state)
    facts = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": {"state.json": facts}}))


def stop(number: int, frame: object) -> NoReturn:
    """What SIGTERM asks for."""
    save(step)
    tell("interrupted", step, "SIGTERM came; everything is saved")
    sys.exit(143)


if kind == "wrong":
    sys.stderr.write("yoloyard: unknown setting 'batsch'; did you mean 'batch'?\n")
    sys.exit(2)
step = 0
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "hangs" else stop)
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text("epochs: 1\n")
tell("running", 0)
for step in range(1, int(count) + 1):
    tell("running", step)
    time.sleep(0.01)
if kind == "hangs":
    time.sleep(60)
if step or kind != "killed":
    save(step)
if kind == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "fails":
    tell("failed", step, "the disk is full")
    sys.exit(1)
tell("finished", step, "epoch 1 was the last, and the report is written")
