"""What commands share: flags, made from settings and exact in their values, and the document for programs."""

import contextlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from yoloyard.config.overrides import whole_number
from yoloyard.config.settings import AUTO, settings_of

SWITCH = Parameter(negative="", show_default=False)  # of flags that are off, and have no value
Json = Annotated[bool, SWITCH, Parameter(name="--json", help="print one JSON document (docs/json.md)")]
Data = Annotated[Path, Parameter(help="the data.yaml of your images and labels")]
Project = Annotated[Path, Parameter(help="folder of the run folders")]
Auto = Literal["auto"]
Name = Annotated[str, Parameter(help="name of the run folder")]


def exact_value(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """The value of a flag: a number is never rounded, and `~` is the home folder also in `--flag=~/x`."""
    if kind == int | Auto and tokens[0].value == AUTO:
        return AUTO
    if kind in (int, int | Auto):
        return whole_number(tokens[0].value)
    if kind is Path:
        return Path(os.path.expanduser(tokens[0].value))
    return cyclopts.convert(kind, tokens)


def takes_settings(tree: type, **spellings: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give `command(**overrides)` a flag for each setting of `tree` that is no argument of its own.

    `spellings` are further names of some.
    """
    flags = []
    for leaf in settings_of(tree).values():
        default = "" if leaf.default in (None, "") else f" (default: {leaf.default})"
        names = [f"--{leaf.name}", f"--{spellings[leaf.name]}"] if leaf.name in spellings else None
        parameter = Parameter(name=names, help=leaf.help + default, show_default=False, show=not leaf.hidden)
        is_size = any(typing.get_origin(kind) is tuple for kind in typing.get_args(leaf.type))  # such as 512x2048
        kind: Any = Annotated[(str if is_size else leaf.type | Auto if leaf.auto else leaf.type) | None, parameter]
        flags.append(inspect.Parameter(leaf.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        every = [*own, *(flag for flag in flags if flag.name not in {parameter.name for parameter in own})]
        command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return command

    return decorate


def given(overrides: dict[str, Any]) -> dict[str, Any]:
    """The flags that stand on the command line."""
    return {name: value for name, value in overrides.items() if value is not None}


def stdout_for_json(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """While entered and if `as_json`, all lines go to stderr, so that stdout holds the JSON document alone."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON document; paths as texts."""
    import json  # which --help needn't load

    print(json.dumps(document, indent=1, default=os.fspath))


def count_of(number: int, noun: str) -> str:
    """`1 error`, `2 errors`, `1,000 errors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
