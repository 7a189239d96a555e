"""Training on a CPU, alone and beside a busy process: with threads by the idle cores, and with one for each core.

    python benchmarks/not_alone.py --data demo/data.yaml --reference-python PYTHON

PYTHON is the interpreter of both sides, and both are ours: "theirs" in the table is OMP_NUM_THREADS as many as there
are cores. Each turn trains a yolo11n at 320 pixels on a few batches, loading included, in bfloat16 where it is native.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from side_by_side import HERE, Row, Side, arguments_of, compare, native_bfloat16, write_results

WANTED = 10  # images a second beside a busy process


def main() -> None:
    arguments = arguments_of(
        "Train alone and beside a busy process.",
        data={"type": Path, "required": True, "help": "data.yaml of the demo set"},
    )
    cores = len(os.sched_getaffinity(0))
    dtype = "bfloat16" if native_bfloat16() else "float32"
    command = [HERE / "sides" / "not_alone_ours.py", "--data", arguments.data, "--dtype", dtype]
    sides = [Side("threads by idle cores", command), Side("a thread for each core", command, cores)]
    rows = []
    for what, busy in (("alone", 0), ("beside a busy process", 1)):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            found = list(compare(arguments.reference_python, sides, arguments.repeats).values())
        finally:
            for other in others:
                other.kill()
                other.wait()
        ours, fixed = ([answer["images_per_second"] for answer in answers] for answers in found)
        threads = " : ".join(f"{answers[-1]['threads']:.0f}" for answers in found)
        note = f"demo set, yolo11n, 320 px, {dtype}, threads {threads}"
        note += f"; wanted: {WANTED} images/s" if busy else ""
        rows.append(Row(f"training {what}", "images/s", ours, fixed, 1.0, more_is_better=True, note=note))
    write_results("not_alone", rows, arguments.reference_python)


if __name__ == "__main__":
    main()
