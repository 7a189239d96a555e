"""Two programs measured in turns, A B A B, and what came of it as rows of a table.

Both sides run in the reference's environment, so that they have the same torch, NumPy and OpenCV. Each is a process of
its own that stays alive between its turns (see `turns.py`) and whose output goes to `runs/bench/SIDE.log`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
RESULTS = HERE / "results"
LOGS = Path("runs", "bench")
CPUINFO = Path("/proc/cpuinfo")  # of Linux
NOT_PASSED_ON = ("OMP_", "MKL_", "PYTHONDONTWRITEBYTECODE")  # a user's Python keeps what it has compiled


@dataclass(frozen=True)
class Side:
    """A program: its name in tables, its command after the interpreter, and how many threads it may use."""

    name: str
    command: Sequence[str | Path]
    threads: int | None = None  # None: as many as it chooses itself


@dataclass
class Row:
    """A line of the table: medians of what the sides needed, and their ratio ours : theirs."""

    what: str
    unit: str
    ours: list[float]
    theirs: list[float]  # empty where there is nothing to compare with
    goal: float | None  # what the ratio should be: at most, or at least where `more_is_better`
    more_is_better: bool = False
    note: str = ""  # threads, dtypes, sizes
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.ratio = statistics.median(self.ours) / statistics.median(self.theirs) if self.theirs else None


def arguments_of(description: str, **more: Any) -> argparse.Namespace:
    """The flags that every benchmark has; `more` are further ones, by name, as keywords of `add_argument`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--reference-python", type=Path, required=True, help="interpreter of the environment with both")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side that count")
    for name, keywords in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()


def compare(python: Path, sides: Sequence[Side], repeats: int, warmups: int = 1) -> dict[str, list[dict[str, float]]]:
    """What each side reports in each of its `repeats` turns, by the side's name; `warmups` turns before don't count."""
    LOGS.mkdir(parents=True, exist_ok=True)
    started = [_start(python, side) for side in sides]
    answers: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    try:
        for turn in range(-warmups, repeats):
            for side, (process, replies) in zip(sides, started, strict=True):
                answer = _take_turn(side, process, replies)
                if turn >= 0:
                    answers[side.name].append(answer)
    finally:
        for process, replies in started:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            process.wait()
            replies.close()
    return answers


def write_results(name: str, rows: Sequence[Row], python: Path, folder: Path = RESULTS) -> None:
    """Keep the rows with machine and versions in `results/NAME.json`, of which `run_all.py` makes RESULTS.md.

    Rows of which more are to come belong into another `folder`: an earlier whole result stays until there is a new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "measured": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.system()},
        "versions": versions(python),
        "rows": [asdict(row) for row in rows],
    }
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        goal = "" if row.goal is None else f" (wanted {'>=' if row.more_is_better else '<='} {row.goal:g})"
        beside = f" : {statistics.median(row.theirs):.4g}" if row.theirs else ""
        ratio = "" if row.ratio is None else f" = {row.ratio:.3f}{goal}"
        print(f"{row.what}: {statistics.median(row.ours):.4g}{beside} {row.unit}{ratio}  {row.note}", flush=True)


def own_environment() -> dict[str, str]:
    """The environment variables of a measured program, by which it finds yoloyard and turns.py."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
    # The reference asks no server, and its settings are its own.
    offline = {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(LOGS.resolve())}
    return {**kept, **offline, "PYTHONPATH": os.pathsep.join((str(SOURCE), str(HERE)))}


def processor() -> str:
    """The name of the processor, and whether it multiplies bfloat16."""
    return f"{processor_name()} ({', '.join(native_bfloat16()) or 'no native bfloat16'})"


def native_bfloat16() -> list[str]:
    """The instructions by which the processor multiplies bfloat16; known on Linux."""
    words = set(CPUINFO.read_text(encoding="utf-8").split()) if CPUINFO.exists() else set()
    return [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in words]


def processor_name() -> str:
    """The name of the processor alone."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions(python: Path) -> dict[str, str]:
    """Python and the packages that matter in the environment of both sides."""
    names = {"torch", "numpy", "opencv-python-headless", "ultralytics-opencv-headless"}
    code = (
        "import importlib.metadata as m, json, platform; there = {d.name: d.version for d in m.distributions()}; "
        f"found = {{n: there[n] for n in {sorted(names)} if n in there}}; "
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def _start(python: Path, side: Side) -> tuple[subprocess.Popen[str], TextIO]:
    """The program of a side and where its answers come from, apart from what it prints, which goes to its log."""
    environment = own_environment()
    if side.threads is not None:
        environment["OMP_NUM_THREADS"] = str(side.threads)
    receive, send = os.pipe()
    environment["ANSWERS_TO"] = str(send)
    with (LOGS / f"{side.name.replace(' ', '-').replace('/', '-')}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [python, *side.command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env=environment,
            pass_fds=[send],
        )
    os.close(send)
    return process, os.fdopen(receive, encoding="utf-8")


def _take_turn(side: Side, process: subprocess.Popen[str], replies: TextIO) -> dict[str, float]:
    assert process.stdin is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise SystemExit(f"{side.name} has ended; its output is in {LOGS}") from None
    answer = replies.readline()
    if not answer:
        raise SystemExit(f"{side.name} has ended; its output is in {LOGS}")
    return json.loads(answer)
