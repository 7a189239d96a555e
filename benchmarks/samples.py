"""Training samples a second beside ultralytics: mosaic, affine, colours and flips, 640 pixels, defaults of each.

`--data` is a set of 320-pixel images (see README.md, trees.py); of these and of the demo set JPEGs with 640 to 1920
pixels on the long side are put together in `runs/bench/samples`. One thread, no workers, unless `--workers` is given.
"""

from __future__ import annotations

from pathlib import Path

from samples_set import IMAGES, TIMES, write_set
from side_by_side import HERE, LOGS, Row, Side, arguments_of, compare, write_results

from yoloyard.demo.write import write_demo

# For decoding: our loader keeps the last 528 decoded images, which should be a small part of an epoch.
TIMES_UNCACHED = 48
NOTE = "1 thread, no workers, batch 16"


def main() -> None:
    arguments = arguments_of(
        str(__doc__),
        data={"type": Path, "default": Path("trees", "data.yaml"), "help": "data.yaml of the images"},
        images={"type": int, "default": IMAGES, "help": "number of JPEGs, each of which is there several times"},
        workers={"type": int, "nargs": "*", "default": [], "help": "measure with so many workers instead"},
    )
    demo = write_demo(LOGS / "demo")
    sources = [demo.parent, arguments.data.parent]
    data = write_set(LOGS / "samples", sources, arguments.images, TIMES)
    large = write_set(LOGS / "samples-large", sources, arguments.images, TIMES_UNCACHED)

    def side(name: str, program: str, data: Path, *words: object) -> Side:
        return Side(name, [HERE / "sides" / f"samples_{program}.py", data.resolve(), *map(str, words)], threads=1)

    def both(workers: int) -> list[Side]:
        return [side(name, name, large, "none", workers) for name in ("ours", "theirs")]

    def measured(*sides: Side) -> dict[str, list[float]]:
        answers = compare(arguments.reference_python, sides, arguments.repeats)
        return {name: [turn["samples_per_second"] for turn in turns] for name, turns in answers.items()}

    def row(what: str, ours: list[float], theirs: list[float], goal: float | None, note: str = NOTE) -> Row:
        return Row(what, "samples/s", ours, theirs, goal, more_is_better=True, note=note)

    if arguments.workers:
        rows = []
        for workers in arguments.workers:
            found = measured(*both(workers))
            note = f"{workers} workers, batch 16"
            rows.append(row(f"training samples, {workers} workers", found["ours"], found["theirs"], None, note))
        write_results("samples_workers", rows, arguments.reference_python)
        return
    found = measured(*both(0), side("floor", "floor", large))
    sides = {"ours, disk": ("ours", "disk"), "theirs": ("theirs", "none"), "theirs, ram": ("theirs", "ram")}
    cached = measured(*(side(name, program, data, cache, 0) for name, (program, cache) in sides.items()))
    over_floor = f"{NOTE}; theirs: reading and decoding one image a sample, nothing else"
    rows = [
        row("training samples, nothing cached", found["ours"], found["theirs"], 1.3),
        row("the same over decoding alone", found["ours"], found["floor"], None, over_floor),
        row("training samples, --cache disk over nothing cached", cached["ours, disk"], cached["theirs"], 2.5),
        row("training samples, --cache disk over cache=ram", cached["ours, disk"], cached["theirs, ram"], 1.3),
    ]
    write_results("samples", rows, arguments.reference_python)


if __name__ == "__main__":
    main()
