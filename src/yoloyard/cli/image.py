"""The commands `yoloyard image`: build the images, and say what is in them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

image_app = cyclopts.App(name="image", help="Build the container images, and say which there are.")


def register(app: cyclopts.App) -> None:
    """Add the commands of this file."""
    app.command(image_app)


@image_app.command(name="build")
def image_build(
    tag: Annotated[str, Parameter(help="such as torch2.8-cu128; `yoloyard image list` shows all")],
    *,
    stage: Annotated[Literal["devel", "runtime", "both"], Parameter(help="devel also has Jupyter and SSH")] = "devel",
    engine: Annotated[str | None, Parameter(help="docker, podman or buildah; default: the first that answers")] = None,
    base_image: Annotated[str | None, Parameter(help="in place of ubuntu:24.04, for example with its digest")] = None,
    pip_index: Annotated[str, Parameter(help="a mirror of PyPI")] = "",
    apt_mirror: Annotated[str, Parameter(help="a mirror of Ubuntu's packages, as in http://mirrors.example.cn")] = "",
    torch_index: Annotated[str | None, Parameter(help="a mirror of the tag's index of torch; '' for none")] = None,
    build_option: Annotated[
        list[str] | None, Parameter(help="a word for the engine, as in --build-option=--network=host; repeatable")
    ] = None,
) -> None:
    """Build an image from the clone that yoloyard is used from."""
    from yoloyard.machines.image.build import build, build_command, clone_root, image_names
    from yoloyard.machines.image.builder import find_builder
    from yoloyard.machines.image.versions import find_tag

    root, wanted = clone_root(), find_tag(tag)
    found = find_builder(engine)
    stages: list[Literal["runtime", "devel"]] = ["runtime", "devel"] if stage == "both" else [stage]
    for one in stages:
        mirrors = (base_image, torch_index, pip_index, apt_mirror)
        build(build_command(found, root, wanted, one, *mirrors, options=build_option or ()))
        print(f"image: {', '.join(image_names(wanted, one))}")


@image_app.command(name="list")
def image_list() -> None:
    """List all tags: PyTorch, CUDA, GPUs, the least driver, and which are built here."""
    from rich.console import Console
    from rich.table import Column, Table

    from yoloyard.common.errors import UserError
    from yoloyard.machines.image.build import image_names
    from yoloyard.machines.image.builder import find_builder, is_built
    from yoloyard.machines.image.versions import tags

    try:
        engine = find_builder()
    except UserError:
        engine = None  # the table is of use without one as well
    table = Table(Column("tag", no_wrap=True), "PyTorch", "CUDA", "GPU code", "driver from", "built here")
    for tag in tags().values():
        built = [stage for stage in ("devel", "runtime") if engine and is_built(engine, image_names(tag, stage)[0])]
        name = "\n".join([tag.name, *(f"= {alias}" for alias in tag.aliases)])
        here = ", ".join(built) if engine else "no engine"
        table.add_row(name, tag.torch, tag.cuda or "-", " ".join(tag.architectures) or "-", tag.driver or "-", here)
    Console().print(table)


@image_app.command(name="show")
def image_show(
    tag: Annotated[str, Parameter(help="a tag or an alias")],
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="for programs")] = False,
) -> None:
    """Print all that the table says of a tag, and where it has it from."""
    from yoloyard.machines.image.build import image_names
    from yoloyard.machines.image.versions import find_tag

    found = find_tag(tag)
    facts = asdict(found) | {"images": image_names(found, "devel") + image_names(found, "runtime")}
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    sources = facts.pop("sources")
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, (list, tuple)) else value
        source = f"   ({sources[name]})" if name in sources else ""
        print(f"{name:14} {text or '-'}{source}")
