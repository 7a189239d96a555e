"""Loss and assignment alone, beside the reference's: from the maps of a batch of 16 to their gradients.

`python benchmarks/loss.py --reference-python P` writes `results/loss.json`: 640 pixels, 80 classes, 10, 100 and 300
boxes an image. The reference's maps are given to it as its head leaves them, joined over the levels; ours are not.
"""

from __future__ import annotations

import os

from side_by_side import HERE, Row, Side, arguments_of, compare, write_results

BOXES = (10, 100, 300)


def main() -> None:
    arguments = arguments_of(__doc__ or "")
    cores = len(os.sched_getaffinity(0))
    rows = []
    for boxes in BOXES:
        ours, theirs = (
            Side(f"loss {who} {boxes}", [HERE / "sides" / "loss.py", who, str(boxes), str(cores)], cores)
            for who in ("ours", "theirs")
        )
        answers = compare(arguments.reference_python, [ours, theirs], arguments.repeats, warmups=2)
        a, b = ([answer["seconds"] for answer in answers[side.name]] for side in (ours, theirs))
        note = f"batch 16, 640 pixels, 80 classes, float32, {cores} threads"
        rows.append(Row(f"loss and assignment, {boxes} boxes an image", "s", a, b, 0.6, note=note))
    write_results("loss", rows, arguments.reference_python)


if __name__ == "__main__":
    main()
