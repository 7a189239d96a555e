"""Training of yolo11n in two processes with a thread each, compared with one process with one thread.

    python benchmarks/two_processes.py --data demo/data.yaml --reference-python PYTHON

PYTHON is the interpreter of all sides, and all are ours: "theirs" in the first row is one process. In the second row it
is two processes that exchange nothing, each with half of the images: what two cores can do here. Each turn trains on as
many images, loading included, in bfloat16 where it is native. Two cores must be idle.
"""

from __future__ import annotations

from pathlib import Path

from side_by_side import HERE, Row, Side, arguments_of, compare, native_bfloat16, write_results

WANTED = 1.9
IMGSZ, BATCH = 640, 8


def main() -> None:
    arguments = arguments_of(
        "Train in two processes and in one.",
        data={"type": Path, "required": True, "help": "data.yaml of the demo set"},
    )
    dtype = "bfloat16" if native_bfloat16() else "float32"
    words = ["--data", arguments.data, "--dtype", dtype, "--imgsz", str(IMGSZ), "--batch", str(BATCH)]
    program = [HERE / "sides" / "two_processes_ours.py", *words, "--processes"]
    sides = [
        Side("two", [*program, "2"], 1),
        Side("apart", [*program, "2", "--apart"], 1),
        Side("one", [*program, "1"], 1),
    ]
    answers = compare(arguments.reference_python, sides, arguments.repeats)
    two, apart, one = ([answer["images_per_second"] for answer in answers[side.name]] for side in sides)
    rows = []
    for what, others, goal in (("two processes", one, WANTED), ("two processes and two apart", apart, None)):
        turns = sorted(ours / theirs for ours, theirs in zip(two, others, strict=True))
        note = f"demo set, {IMGSZ} px, {dtype}, a thread each; {turns[0]:.2f} to {turns[-1]:.2f} in {len(turns)} turns"
        rows.append(Row(what, "images/s", two, others, goal, more_is_better=True, note=note))
    write_results("two_processes", rows, arguments.reference_python)


if __name__ == "__main__":
    main()
