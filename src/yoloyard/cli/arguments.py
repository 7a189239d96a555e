"""The habits of YOLO users: other ways to write the arguments of a command, turned into ours."""

import inspect
import itertools
from collections.abc import Sequence

import cyclopts

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import ALIASES, setting_name
from yoloyard.config.settings import NEWEST, TrainConfig, settings_of

OTHER_TASKS = ("segment", "classify", "pose", "obb")
SWITCH_VALUES = ("true", "false", "yes", "no")
MIN_IMAGE_PIXELS = 32  # a smaller number after `--imgsz 64` is that of a camera
BARE_FLAGS = {"--resume": NEWEST, "--cache": "ram"}  # that need no value, and what they mean then


def normal_arguments(argv: Sequence[str], app: cyclopts.App) -> list[str]:
    """The arguments as the commands of `app` declare them.

    Understands a task and `mode=train` before the command, `key=value`, `_` for `-`, YOLOv5's names, `BARE_FLAGS`, and
    a value after a switch. Raises UsageError for another task than detection and for a second image size.
    """
    if argv[:1] == ["shell"]:
        return list(argv)  # the arguments of another program
    argv = _without_task(argv)
    command = app.parse_commands(argv)[1][-1].default_command
    own = inspect.signature(command).parameters if command else {}
    known = {*settings_of(TrainConfig), *ALIASES, "hyp", *own}
    # Where there are flags alone, a mistyped one is an error; elsewhere it may be a file's name.
    has_only_flags = all(each.kind is each.KEYWORD_ONLY for each in own.values()) and bool(own)
    kinds = {name: getattr(each.annotation, "__origin__", None) for name, each in own.items()}
    switches = [f"--{name.replace('_', '-')}" for name, kind in kinds.items() if kind in (bool, bool | None)]
    normal: list[str] = []
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if equals and not argument.startswith("-") and (name.replace("-", "_") in known or has_only_flags):
            argument = f"--{argument}"
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = "config" if name == "hyp" else setting_name(name)
            argument = f"--{name.replace('_', '-')}{equals}{value}"
        if normal and argument.lower() in SWITCH_VALUES and normal[-1] in switches:
            normal[-1] += f"={argument}"
            continue
        first = " ".join(normal[-2:]).rpartition("--imgsz")[2][1:]
        if first.isdecimal() and argument.isdecimal() and int(argument) >= MIN_IMAGE_PIXELS:
            raise UsageError(f"--imgsz takes a side, or HEIGHTxWIDTH as one word: --imgsz {first}x{argument}")
        normal.append(argument)
    pairs = itertools.pairwise([*normal, "-"])  # each with the one after it
    return [f"{one}={BARE_FLAGS[one]}" if one in BARE_FLAGS and two[:1] == "-" else one for one, two in pairs]


def _without_task(argv: Sequence[str]) -> list[str]:
    """The arguments without `detect` or `task=detect`, and the command of `mode=train` first."""
    for task in OTHER_TASKS:
        if argv[:1] == [task] or f"task={task}" in argv:
            raise UsageError(f"yoloyard has no task '{task}': it trains detectors only; leave the task out")
    modes = [argument.removeprefix("mode=") for argument in argv if argument.startswith("mode=")][:1]
    rest = [argument for argument in argv if argument != "task=detect" and not argument.startswith("mode=")]
    if rest[:1] == ["detect"]:
        del rest[0]
    return rest if rest[:1] == modes else modes + rest
