"""The command line in tests: words that make a run tiny, and commands in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from yoloyard.cli.main import main

Command = Callable[..., tuple[int, str, str]]

TINY_NETWORK = f"{Path(__file__).with_name('tiny_network.py')}:Tiny"
TINY = ["--model", TINY_NETWORK, "--imgsz", "64", "--batch", "4", "--no-amp", "--no-tensorboard", "--device", "cpu"]


def exit_code(*words: object) -> int:
    """The exit code of a command that is run in this process."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def alerts_in(folder: Path) -> list[dict[str, Any]]:
    """The alerts of a run folder; none if the run has written nothing."""
    lines = [json.loads(line) for path in folder.glob("metrics.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if "alert" in line]


def start(*words: object, variables: Mapping[str, str] | None = None, **options: object) -> "subprocess.Popen[str]":
    """Start a command in a process of its own, with `variables` in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "yoloyard", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **(variables or {})},
        **options,  # type: ignore[call-overload]
    )


@contextlib.contextmanager
def not_ignored(number: int) -> Iterator[None]:
    """What is started meanwhile heeds the signal `number`, also under nohup and in the background."""
    former = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, former)
