"""The commands `weights` and `weights get`."""

import sys
from dataclasses import asdict
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH, Json, print_json

weights_app = cyclopts.App(name="weights")

TABLE_COLUMNS = 100  # where stdout is no terminal


@weights_app.default
def weights(
    *,
    licence: Annotated[
        Literal["permissive"] | None, Parameter(help="only files that a product with closed source may hold")
    ] = None,
    json: Json = False,
) -> None:
    """List weights files that others publish: who, under which licences, trained on what, and their mAP."""
    from yoloyard.cli.runs import print_table
    from yoloyard.config.known_weights import known_files
    from yoloyard.storage.published import place_of

    found = [each for each in known_files().values() if each.is_permissive or licence is None]
    places = {each: place_of(each) if place_of(each).is_file() else None for each in found}
    if json:
        facts = [asdict(each) | {"licence": each.licence, "permissive": each.is_permissive} for each in found]
        print_json({"files": [row | {"cached": place} for row, place in zip(facts, places.values(), strict=True)]})
        return
    heading = ["model", "file", "publisher", "code", "weights", "data", "mAP50-95", "read here", "cache"]
    rows = []
    for each, place in places.items():
        score = "-" if each.map50_95 is None else f"{each.map50_95:.1f}" + f" at {each.imgsz}" * (each.imgsz != 640)
        own = each.weights or "as code"
        checks = ["yes" if each.read_here else "no", "yes" if place else "no"]
        rows.append([each.model, each.file, each.publisher, each.code, own, each.data, score, *checks])
    print_table(heading, *rows, piped_width=TABLE_COLUMNS)
    for name, terms in dict.fromkeys((each.data, each.data_terms) for each in found):
        print(f"{name}: {terms}")
    print(
        "code, weights: licences; as code: none is stated for the weights alone. mAP50-95: as published, on\n"
        "val2017 at 640 pixels. read here: a test of yoloyard has read files of this form, if not this one.\n"
        "`yoloyard weights get MODEL` fetches a file; docs/weights.md says what the licences mean."
    )


@weights_app.command(name="get")
def weights_get(
    model: Annotated[str, Parameter(help="a name from `yoloyard weights`, such as yolov9s")],
    /,
    *,
    yes: Annotated[bool, SWITCH, Parameter(help="accept the terms without being asked")] = False,
) -> None:
    """Fetch a published weights file into the cache, where --weights finds it by its name."""
    import difflib

    from yoloyard.common.errors import UsageError
    from yoloyard.config.known_weights import find_known, known_files
    from yoloyard.storage.published import get, place_of, source_of

    if (known := find_known(model)) is None:
        near = difflib.get_close_matches(model.lower(), known_files(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"no published file is known as {model!r}: {hint}`yoloyard weights` lists them")
    place = place_of(known)
    if place.is_file():
        get(known)  # which checks it
        print(f"{known.model} is there already: {place}")
        return
    print(f"{source_of(known)}\npublished by {known.publisher}; {known.terms}\nto {place}", flush=True)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here: --yes accepts these terms and fetches the file")
        if input("fetch it under these terms? [y/N] ").lower() not in ("y", "yes"):
            print("nothing was fetched")
            return
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(known.file)
        get(known, lambda done, total: progress.update(task, completed=done, total=total))
    print(f"{known.model} is there: --weights {known.model} uses it")
