"""The commands `up`, `down`, `shell` and `jupyter`: parse, call, print."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH

_On = Annotated[str | None, Parameter(help="another host, as ssh://user@host or ssh://user@host:port")]
_Engine = Annotated[Literal["docker", "podman"] | None, Parameter(help="engine; default: the one that is there")]
_Port = cyclopts.validators.Number(gte=1, lte=65535)


def up(
    *,
    tag: Annotated[str | None, Parameter(help="the image; default: the newest that fits driver and GPU")] = None,
    gpus: Annotated[str | None, Parameter(help="all, none, or numbers like 0,1; default: all there are")] = None,
    on: _On = None,
    engine: _Engine = None,
    address: Annotated[
        str | None, Parameter(help="where the ports listen; 0.0.0.0 lets the whole network in; default: 127.0.0.1")
    ] = None,
    jupyter_port: Annotated[int | None, Parameter(help="default: 8888 or the next free", validator=_Port)] = None,
    ssh_port: Annotated[int | None, Parameter(help="default: 2222 or the next free", validator=_Port)] = None,
    tensorboard_port: Annotated[int | None, Parameter(help="default: 6006 or the next free", validator=_Port)] = None,
    shm_size: Annotated[str | None, Parameter(help="limit of shared memory; default: 8gb")] = None,
    data: Annotated[str | None, Parameter(help="folder to mount as /data; default: a volume")] = None,
    yes: Annotated[bool, SWITCH, Parameter(help="with --on: copy the folder whatever its size")] = False,
) -> None:
    """Start the container of this folder, with Jupyter, TensorBoard and SSH."""
    from yoloyard.machines.containers.local import up as run

    ports = {"jupyter_port": jupyter_port, "ssh_port": ssh_port, "tensorboard_port": tensorboard_port}
    wishes = {"tag": tag, "gpus": gpus, "address": address, **ports, "shm_size": shm_size, "data": data}
    run(Path.cwd(), on, engine, wishes, yes)


def down(
    *,
    on: _On = None,
    engine: _Engine = None,
    volumes: Annotated[bool, SWITCH, Parameter(help="delete its volumes too: data, caches, host keys")] = False,
) -> None:
    """Stop the container of this folder; trainings have two minutes to save."""
    from yoloyard.machines.containers.local import down as run

    run(Path.cwd(), on, engine, volumes)


def shell(
    *command: Annotated[str, Parameter(help="default: a shell; our flags come before it", allow_leading_hyphen=True)],
    on: _On = None,
    engine: _Engine = None,
) -> None:
    """Open a shell in the container, or run a command there."""
    from yoloyard.machines.containers.local import shell as run

    sys.exit(run(Path.cwd(), on, engine, command))


def jupyter(
    *,
    on: _On = None,
    engine: _Engine = None,
    open_browser: Annotated[bool, SWITCH, Parameter(name="--open", help="open the browser, too")] = False,
) -> None:
    """Print the address of JupyterLab; with --on, keep a tunnel to it open until Ctrl-C."""
    import webbrowser  # which --help needn't load

    from yoloyard.machines.containers.local import jupyter as run

    run(Path.cwd(), on, engine, webbrowser.open if open_browser else lambda _: None)
