"""A whole training from the command line, with start-up, validations and report: its time and its peak of memory.

    yoloyard demo demo
    python benchmarks/epoch.py --reference-python REFERENCE/bin/python --demo demo/data.yaml --trees trees/data.yaml

Twice: with the defaults of each side, and with two threads for both. Default numbers of workers: the reference has 8
processes that load images, or as many as there are cores if these are fewer; yoloyard on a CPU has none.
"""

import os
import subprocess
from pathlib import Path

from side_by_side import HERE, LOGS, Row, Side, arguments_of, compare, own_environment, write_results

WHOLE_COMMAND = HERE / "sides" / "whole_command.py"
RUNS = Path("runs", "bench", "epoch").resolve()
THREADS = 2
SETTINGS = {"trees": {"epochs": 2, "batch": 16}, "demo": {"epochs": 1, "batch": 8}}


def main() -> None:
    a_file = {"type": Path, "required": True}
    arguments = arguments_of(
        "Compare whole commands.",
        demo={**a_file, "help": "data.yaml of `yoloyard demo`"},
        trees={**a_file, "help": "data.yaml that examples/trees/prepare.py has written"},
    )
    python = arguments.reference_python.absolute()  # a link in a virtual environment, which must not be followed
    os.environ["YOLOYARD_CACHE"] = str(RUNS / "cache")
    RUNS.mkdir(parents=True, exist_ok=True)
    command = [python.with_name("yolo"), "settings", "sync=False"]
    subprocess.run(command, env=own_environment(), stdout=subprocess.DEVNULL, check=True)
    rows = []
    for name, settings in SETTINGS.items():
        data = getattr(arguments, name).resolve()
        for threads, goal in ((None, 0.4), (THREADS, 0.6)):
            words = {**settings, "imgsz": 320, "data": data, "device": "cpu", "project": RUNS}
            sides = our_side(python, name, words, threads), their_side(python, name, words, threads)
            answers = compare(python, sides, arguments.repeats)
            what = f"{name}: the command that trains {settings['epochs']} epochs"
            what += ", defaults" if threads is None else f", {threads} threads"
            note = f"yolo11n, 320 pixels, batch {settings['batch']}"
            seconds, memory = (
                [[answer[figure] for answer in answers[side.name]] for side in sides]
                for figure in ("seconds", "megabytes")
            )
            rows.append(Row(f"{what}, time", "s", seconds[0], seconds[1], goal, note=note))
            note += "; all processes, PSS"
            rows.append(Row(f"{what}, peak memory", "MB", memory[0], memory[1], 0.7, note=note))
            write_results("epoch", rows, python, LOGS)  # what there is so far, since the whole takes long
    write_results("epoch", rows, python)


def our_side(python: Path, name: str, words: dict[str, object], threads: int | None) -> Side:
    run = f"ours-{name}"
    flags = [str(part) for word, value in words.items() for part in (f"--{word}", value)]
    command: list[str | Path] = [python, "-m", "yoloyard", "train", "--model", "yolo11n", *flags, "--name", run]
    return Side(f"epoch {run}", [WHOLE_COMMAND, RUNS / run, *command], threads)


def their_side(python: Path, name: str, words: dict[str, object], threads: int | None) -> Side:
    run = f"theirs-{name}"
    flags = [f"{word}={value}" for word, value in words.items()]
    flags += ["model=yolo11n.yaml", "pretrained=False", f"name={run}", "exist_ok=True"]
    command: list[str | Path] = [python.with_name("yolo"), "train"]
    if threads is not None:
        command = [python, HERE / "sides" / "epoch_theirs.py", str(threads)]
    return Side(f"epoch {run}", [WHOLE_COMMAND, RUNS / run, *command, *flags], threads)


if __name__ == "__main__":
    main()
