"""The commands `image build`, `image list` and `image show`."""

from dataclasses import asdict
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import Json, print_json

image_app = cyclopts.App(name="image")


@image_app.command(name="build")
def image_build(
    tag: Annotated[str, Parameter(help="such as torch2.8-cu128; `yoloyard image list` shows all")],
    *,
    stage: Annotated[Literal["devel", "runtime", "both"], Parameter(help="devel also has Jupyter and SSH")] = "devel",
    engine: Annotated[str | None, Parameter(help="docker, podman or buildah; default: the first that answers")] = None,
    base_image: Annotated[str | None, Parameter(help="in place of ubuntu:24.04, for example with its digest")] = None,
    pip_index: Annotated[str | None, Parameter(help="a mirror of PyPI")] = None,
    apt_mirror: Annotated[str | None, Parameter(help="a mirror of Ubuntu, as in http://mirrors.example.cn")] = None,
    torch_index: Annotated[str | None, Parameter(help="a mirror of the tag's index of torch; '' for none")] = None,
    build_option: Annotated[
        list[str] | None, Parameter(help="a word for the engine (--build-option=--pull); repeatable", negative="")
    ] = None,
) -> None:
    """Build an image from the clone that yoloyard is used from."""
    from yoloyard.machines.image.build import build, build_command, clone_root, find_builder, image_names
    from yoloyard.machines.image.versions import find_tag

    root, wanted = clone_root(), find_tag(tag)
    found = find_builder(engine)
    mirrors = {"TORCH_INDEX": torch_index, "PIP_INDEX": pip_index, "APT_MIRROR": apt_mirror}
    replaced = {"BASE_IMAGE": base_image or None, **mirrors}
    stages: list[Literal["runtime", "devel"]] = ["runtime", "devel"] if stage == "both" else [stage]
    for one in stages:
        build(build_command(found, root, wanted, one, replaced, build_option or ()))
        print(f"image: {', '.join(image_names(wanted, one))}")


@image_app.command(name="list")
def image_list(*, json: Json = False) -> None:
    """List all tags: PyTorch, CUDA, GPUs, the oldest driver, and which are built here."""
    from rich.console import Console
    from rich.table import Column, Table

    from yoloyard.common.errors import UserError
    from yoloyard.machines.containers.host import Host
    from yoloyard.machines.image.build import find_builder, image_names
    from yoloyard.machines.image.versions import tags

    try:
        engine = find_builder()
    except UserError:
        engine = None  # the table is of use without one as well
    rows, look = [], [engine or "", "inspect", "--type", "image"]
    for tag in tags().values():
        images = {stage: image_names(tag, stage)[0] for stage in ("devel", "runtime")}
        built = [stage for stage, name in images.items() if engine and Host().run([*look, name]).returncode == 0]
        rows.append((tag, built))
    if json:
        print_json({"engine": engine, "tags": [asdict(tag) | {"built": built} for tag, built in rows]})
        return
    table = Table(Column("tag", no_wrap=True), "PyTorch", "CUDA", "GPU code", "driver from", "built here")
    for tag, built in rows:
        name = "\n".join([tag.name, *(f"= {alias}" for alias in tag.aliases)])
        here = ", ".join(built) if engine else "no engine"
        table.add_row(name, tag.torch, tag.cuda or "-", " ".join(tag.architectures) or "-", tag.driver or "-", here)
    Console().print(table)


@image_app.command(name="show")
def image_show(tag: Annotated[str, Parameter(help="a tag or an alias")], *, json: Json = False) -> None:
    """Print all facts about a tag, and their sources."""
    from yoloyard.machines.image.build import image_names
    from yoloyard.machines.image.versions import find_tag

    found = find_tag(tag)
    facts = asdict(found) | {"images": image_names(found, "devel") + image_names(found, "runtime")}
    if json:
        print_json(facts)
        return
    sources = facts.pop("sources")
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, (list, tuple)) else value
        source = f"   ({sources[name]})" if name in sources else ""
        print(f"{name:14} {text or '-'}{source}")
