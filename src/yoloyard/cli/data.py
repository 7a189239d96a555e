"""The commands for data sets: `data check`, `data preview`, `data convert` and `demo`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter, validators

from yoloyard.cli.flags import Data, Json, Name, Project, count_of, given, print_json, stdout_for_json, takes_settings
from yoloyard.config.settings import TrainConfig

Model = Annotated[str | None, Parameter(help="whose maps the boxes are matched with (default: that of train)")]
Imgsz = Annotated[
    str | None, Parameter(help="training size for that: pixels, or HEIGHTxWIDTH (default: that of train)")
]
data_app = cyclopts.App(name="data")


@data_app.command(name="check")
def data_check(
    data: Data,
    *,
    project: Project = Path("runs"),
    name: Name = "check",
    model: Model = None,
    imgsz: Imgsz = None,
    json: Json = False,
) -> None:
    """List what is wrong with a data set, what is in it, and how its boxes match a model.

    Exits with 1 if there is an error.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from yoloyard.commands.data_check import MAX_PROBLEMS_SHOWN, check_data, class_rows
    from yoloyard.data.audit.problems import KINDS

    with stdout_for_json(json):
        check = check_data(data, project, name, **given({"model": model, "imgsz": imgsz}))
    if json:
        print_json(check.as_dict())
        sys.exit(1 if check.errors else 0)
    console = Console()
    table = Table("problem", "", "split", "times", "first ones")
    for kind, is_error in KINDS.items():
        for split, problems in check.problems.items():
            mine = [problem for problem in problems if problem.kind == kind]
            if mine:
                shown = Text("\n".join(map(str, mine[:MAX_PROBLEMS_SHOWN])), overflow="fold")
                table.add_row(kind, "error" if is_error else "warning", split, f"{len(mine):,}", shown)
    if table.row_count:
        console.print(table)
    for split, index in check.indexes.items():
        title = f"{split}: {len(index):,} images"
        if index.skipped:
            title += f", {index.skipped:,} that can't be used"
        if index.ignore.any():
            title += f"; {index.ignore.sum():,} boxes to be ignored (crowd, difficult) are not counted"
        table = Table("class", "images", "boxes", "small", "medium", "large", title=title)
        for label, *numbers in class_rows(index):
            table.add_row(Text(label), *(f"{number:,}" for number in numbers))
        console.print(table)
    for line in check.matching.lines() if check.matching else ():
        print(line)
    counts = f"{count_of(check.errors, 'error')}, {count_of(check.warnings, 'warning')}"
    print(f"{counts}; all of them, and images: {check.page}")
    if check.errors:
        sys.exit(1)


@data_app.command(name="preview")
@takes_settings(TrainConfig)
def data_preview(
    data: Data,
    *,
    config: Annotated[Path | None, Parameter(help="a YAML file of the settings below; flags win")] = None,
    **flags: Any,
) -> None:
    """Show what the network will see of the training images, on a page.

    The flags are those of train; those that change nothing of what the network sees are passed over.
    """
    from yoloyard.commands.data_preview import preview_data
    from yoloyard.config.foreign import overrides_of
    from yoloyard.config.overrides import checked_overrides

    in_file = overrides_of(config) if config else {}
    overrides = in_file | {"name": "preview"} | given(flags) | {"data": str(data)}
    page = preview_data(checked_overrides(TrainConfig, overrides))
    print(f"what the network will see: {page}")


@data_app.command(name="convert")
def data_convert(
    data: Data,
    out: Annotated[Path, Parameter(help="a new or empty folder")],
    *,
    to: Annotated[str, Parameter(help="the format to write: yolo, coco or voc")],  # the table of them imports NumPy
    json: Json = False,
) -> None:
    """Write a data set in another format.

    Images are hard links. What can't be used is left out and listed.
    """
    from yoloyard.data.formats.convert import convert
    from yoloyard.data.formats.data_yaml import read_data_yaml
    from yoloyard.data.formats.table import FORMATS
    from yoloyard.data.index.index import read_split

    spec = read_data_yaml(data)
    with stdout_for_json(json):
        made = convert(spec, out, to)
    if not json:
        print(f"data: {made}")
        return
    splits = []
    for split in spec.splits:
        index = read_split(spec, split)  # from the cache
        left_out = 0 if FORMATS[to].keeps_ignore else int(index.ignore.sum())
        boxes = {"boxes": len(index.boxes) - left_out, "boxes_left_out": left_out}
        splits.append({"split": split, "images": len(index), "skipped": index.skipped, **boxes})
    print_json({"data": made, "format": to, "splits": splits})


def demo(
    folder: Annotated[Path, Parameter(help="where to write it")] = Path("demo"),
    *,
    seed: Annotated[int, Parameter(help="another seed gives other images", validator=validators.Number(gte=0))] = 0,
) -> None:
    """Write the demo data set: images of parts, with exact boxes."""
    from yoloyard.demo.write import write_demo

    print(f"demo data: {write_demo(folder, seed)}")
