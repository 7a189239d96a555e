"""How long a user waits: for `--help`, and from `train` to the first training step; cold processes in turns.

python benchmarks/startup.py --data trees/data.yaml --reference-python REFERENCE/bin/python
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from side_by_side import HERE, Row, arguments_of, own_environment, write_results

SIDES = HERE / "sides"
WORK = Path("runs", "bench", "startup")


def main() -> None:
    arguments = arguments_of(
        "Start both sides in turns.",
        data={"type": Path, "required": True, "help": "data.yaml written by examples/trees/prepare.py"},
    )
    python, data = arguments.reference_python, arguments.data.resolve()
    WORK.mkdir(parents=True, exist_ok=True)
    theirs = str(python.parent / "yolo")
    cases = [
        (
            "help",
            [str(python), "-m", "yoloyard", "--help"],
            [theirs, "help"],
            None,
            "wanted: 0.3 s; theirs: `yolo help`",
        ),
        (
            "train until the first step",
            [str(python), str(SIDES / "startup_ours.py"), str(data)],
            [str(python), str(SIDES / "startup_theirs.py"), str(data)],
            0.5,
            "trees, yolo11n, 320 px, batch 8, each side's defaults; index and labels in the cache of each",
        ),
    ]
    rows = []
    for what, ours, theirs_too, goal, note in cases:
        found: list[list[float]] = [[], []]
        for turn in range(-1, arguments.repeats):
            for seconds, command in zip(found, (ours, theirs_too), strict=True):
                taken = run(command)
                if turn >= 0:
                    seconds.append(taken)
        rows.append(Row(what, "s", found[0], found[1], goal, note=note))
    write_results("startup", rows, python)


def run(command: list[str]) -> float:
    """Seconds from the start of a process until it ends; the programs in `sides` end at their first step."""
    shutil.rmtree(WORK / "runs", ignore_errors=True)
    with (WORK / "last.log").open("w", encoding="utf-8") as log:
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=log, stderr=log, env=own_environment())
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
