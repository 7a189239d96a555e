"""`yoloyard up`, `down`, `shell`, `jupyter`: the container of a project folder, here or on a host over ssh."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yoloyard.common.errors import UsageError, UserError
from yoloyard.machines.containers import gpus as graphics
from yoloyard.machines.containers.container import USER, Engine, Project, Status, find_engine
from yoloyard.machines.containers.copying import copy_folder, send_image
from yoloyard.machines.containers.host import Host, connect, last_line
from yoloyard.machines.containers.ports import PORTS, choose_ports, flag, listens, tunnel_ports
from yoloyard.machines.containers.ssh_keys import public_keys
from yoloyard.machines.image.versions import best_tag, find_tag, repository

log = logging.getLogger(__name__)

SAVING_SECONDS = 120  # that a training has to save when the container stops
HEALTHY_SECONDS = 180.0  # until the container must be healthy
AGAIN = "yoloyard down stops it, up starts again"
_SOURCE = "YOLOYARD_SOURCE"  # the folder that was copied to a host, and the machine that it is on


@dataclass(frozen=True)
class Wishes:
    """What the user asked `up` for; None leaves the choice to it."""

    tag: str | None = None
    gpus: str | None = None
    address: str | None = None
    jupyter_port: int | None = None
    ssh_port: int | None = None
    tensorboard_port: int | None = None
    shm_size: str | None = None
    data: str | None = None

    def variables(self) -> dict[str, str]:
        """Those that were asked for, by their names in compose.yaml."""
        return {f"YOLOYARD_{name.upper()}": str(value) for name, value in asdict(self).items() if value is not None}


def up(folder: Path, on: str | None, engine: str | None, wishes: Wishes, large_is_fine: bool) -> None:
    """Start the container of `folder`, or find it running, and say how to get in.

    Raises UserError for whatever is missing: an engine, a driver, the toolkit, an image, a free port.
    """
    started = time.monotonic()
    with connect(on) as host:
        project = project_of(folder, host)
        settings, asked = project.settings(), wishes.variables()
        before = settings.get("YOLOYARD_ENGINE")
        runner = find_engine(host, engine or before)
        if before and runner.name != before and host.run([before, "version"]).returncode == 0:
            status = project.status(find_engine(host, before))
            if status and status.running:
                raise UserError(f"the container is running with {before}: {AGAIN}")
        if "YOLOYARD_TAG" in asked:
            asked["YOLOYARD_TAG"] = find_tag(asked["YOLOYARD_TAG"]).name  # it may be an alias
        if "YOLOYARD_DATA" in asked:
            asked["YOLOYARD_DATA"] = _data_folder(host, asked["YOLOYARD_DATA"])
        status = project.status(runner)
        if status and status.running:
            _check_known(settings, runner, status)
            changed = [name for name, value in asked.items() if settings.get(name) != value]
            if changed:
                flags = ", ".join(map(flag, changed))
                raise UserError(f"the container is running with another {flags}: {AGAIN}")
            log.info(f"the container is running already ({runner.name}, image {_image(settings)})")
            _wait(project, runner)
        else:
            _check_source(folder, project, settings, large_is_fine)
            if host.is_remote:
                copy_folder(folder, host, project.folder, large_is_fine)
            settings, service = _choose(folder, project, runner, settings, asked)
            _find_image(host, runner, settings)
            project.write(settings, service)
            try:
                _start(project, runner)
            except KeyboardInterrupt:
                log.info("the container may go on starting; yoloyard down stops it")
                raise
        _print_ways_in(host, on, settings)
        log.info(f"up in {time.monotonic() - started:.1f} s")


def down(folder: Path, on: str | None, engine: str | None, volumes: bool) -> None:
    """Stop the container of `folder`, and remove it; what trains has two minutes to save."""
    with connect(on) as host:
        project = project_of(folder, host)
        settings = project.settings()
        runner = find_engine(host, engine or settings.get("YOLOYARD_ENGINE"))
        status = project.status(runner)
        if status:
            _check_known(settings, runner, status)
        if not settings or (status is None and not volumes):
            log.info(f"no container of {project.folder} on {host}")
            return
        log.info(f"stopping; what trains has {SAVING_SECONDS} s to save")
        words = ["down", "--timeout", str(SAVING_SECONDS), *(["--volumes"] if volumes else [])]
        done = host.run(project.compose(runner, *words))
        if done.returncode or project.status(runner) is not None:
            said = last_line(done.stderr) or last_line(done.stdout)
            raise UserError(f"{runner.compose[0]} could not stop it: {said}")
        log.info(f"stopped; its volumes are {'deleted' if volumes else 'kept (--volumes deletes them)'}")
        if host.is_remote:
            port = f" -e 'ssh -p {host.port}'" if host.port else ""
            remote = shlex.quote(f"{host.login}:{project.folder}/runs")
            log.info(f"bring the runs back: rsync -a{port} {remote} .")


def shell(folder: Path, on: str | None, engine: str | None, command: Sequence[str]) -> int:
    """Run `command`, or a shell, in the container as the user there; its exit status."""
    with connect(on) as host:
        _, runner, status, _ = running(folder, host, engine)
        tty = os.isatty(0) and os.isatty(1)
        words = [runner.name, "exec", "--interactive", *(["--tty"] if tty else []), "--user", USER]
        words += ["--workdir", "/workspace", "--env", f"HOME=/home/{USER}", "--env", f"USER={USER}"]
        if tty:
            words += ["--env", f"TERM={os.environ.get('TERM', 'xterm')}"]
        return host.call([*words, status.id, *(command or ["bash"])], tty)


def jupyter(folder: Path, on: str | None, engine: str | None, show: Callable[[str], object]) -> None:
    """Print JupyterLab's address and hand it to `show`; on a host, keep a tunnel open until Ctrl-C."""
    with connect(on) as host:
        _, _, _, settings = running(folder, host, engine)
        if not host.is_remote:
            address = jupyter_url(settings, int(settings["YOLOYARD_JUPYTER_PORT"]))
            log.info(address)
            show(address)
            return
        ports = tunnel_ports(settings)
        tunnel = host.tunnel(_forwards(settings, ports))
        try:
            # ssh opens them in the order of its flags, and ends if one can't be
            while tunnel.poll() is None and not listens(ports["YOLOYARD_TENSORBOARD_PORT"]):
                time.sleep(0.05)
            if tunnel.poll() is not None:
                raise UserError(f"the tunnel to {host} can't be opened (ssh's exit status {tunnel.returncode})")
            address = jupyter_url({}, ports["YOLOYARD_JUPYTER_PORT"], settings["YOLOYARD_JUPYTER_TOKEN"])
            log.info(f"Jupyter:     {address}")
            log.info(f"TensorBoard: http://127.0.0.1:{ports['YOLOYARD_TENSORBOARD_PORT']}/")
            log.info("the tunnel is open until Ctrl-C")
            show(address)
            status = tunnel.wait()
        finally:
            tunnel.terminate()
            tunnel.wait()
        raise UserError(f"the tunnel to {host} closed (ssh's exit status {status})")


def project_of(folder: Path, host: Host) -> Project:
    """The project of `folder`; on a host it lies in ~/yoloyard/NAME."""
    folder = folder.resolve()
    if folder == Path(folder.anchor) or folder == Path.home().resolve():
        raise UsageError(f"{folder} is no project folder; go into one, or make one")
    if not host.is_remote:
        return Project(host, PurePosixPath(folder))
    home = host.ask(["sh", "-c", "cd && pwd"]).strip()
    return Project(host, PurePosixPath(home) / "yoloyard" / folder.name)


def running(folder: Path, host: Host, engine: str | None) -> tuple[Project, Engine, Status, dict[str, str]]:
    """The container of `folder`, which must be running, and its settings. Raises UserError if it isn't."""
    project = project_of(folder, host)
    settings = project.settings()
    runner = find_engine(host, engine or settings.get("YOLOYARD_ENGINE"))
    status = project.status(runner)
    if status is None or not status.running or not settings:
        raise UserError(f"no container of {project.folder} is running on {host}: yoloyard up starts it")
    return project, runner, status, settings


def jupyter_url(settings: dict[str, str], port: int, token: str = "") -> str:
    """JupyterLab's address with its token."""
    address = settings.get("YOLOYARD_ADDRESS", "127.0.0.1")
    return f"http://{_reachable(address)}:{port}/lab?token={token or settings['YOLOYARD_JUPYTER_TOKEN']}"


def _check_known(settings: dict[str, str], runner: Engine, status: Status) -> None:
    if not settings:
        raise UserError(
            "there is a container of this folder, but what `up` chose for it is gone: "
            f"{runner.name} stop --time {SAVING_SECONDS} {status.id[:12]} && {runner.name} rm {status.id[:12]}, then up"
        )


def _choose(
    folder: Path, project: Project, runner: Engine, before: dict[str, str], asked: dict[str, str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """The variables of compose.yaml, and what is added to its service: GPUs, and the user of a rootless podman."""
    host = project.host
    gpus = asked.get("YOLOYARD_GPUS", "all")
    if not re.fullmatch(r"all|none|\d+(,\d+)*", gpus):
        raise UsageError(f"--gpus {gpus} is neither all, none nor numbers like 0,1")
    if not re.fullmatch(r"(?i)\d+[kmg]?b?", asked.get("YOLOYARD_SHM_SIZE", "8gb")):
        raise UsageError(f"--shm-size {asked['YOLOYARD_SHM_SIZE']} is no size, such as 8gb or 512mb")
    found = graphics.Graphics() if gpus == "none" else graphics.find_graphics(host)
    if found.driver is None and gpus not in ("all", "none"):
        raise UserError(f"--gpus {gpus}: {host} has no NVIDIA GPU, or no driver for it (nvidia-smi is not there)")
    used, numbers = graphics.choose(found, gpus)
    service: dict[str, Any] = {}
    if used.driver is not None:
        service |= graphics.override(graphics.gpu_access(host, runner.name), numbers)
    tag = asked.get("YOLOYARD_TAG") or best_tag(used.driver, list(used.capabilities)).name
    log.info(f"tag {tag}" + (", as asked for" if "YOLOYARD_TAG" in asked else f": {_why(host, used, gpus)}"))
    rootless = ["podman", "info", "--format", "{{.Host.Security.Rootless}}"]
    if runner.name == "podman" and host.run(rootless).stdout.strip() == "true":
        # Else the folder's owner would be root inside, and files written by anybody else there belong to nobody here.
        service |= {"userns_mode": "keep-id", "user": "0:0"}
    keys, sources = public_keys()
    log.info(f"SSH keys: {', '.join(sources)}" if keys else "no public SSH key here (ssh-keygen makes one): no SSH")
    address = asked.get("YOLOYARD_ADDRESS", "127.0.0.1")
    settings = {
        "YOLOYARD_ENGINE": runner.name,
        "YOLOYARD_IMAGE": repository(),
        "YOLOYARD_GPUS": gpus,
        "YOLOYARD_WORKSPACE": str(project.folder),
        "YOLOYARD_DATA": "data",
        "YOLOYARD_SHM_SIZE": "8gb",
        "YOLOYARD_ADDRESS": address,
        "YOLOYARD_JUPYTER_TOKEN": before.get("YOLOYARD_JUPYTER_TOKEN") or secrets.token_urlsafe(24),
        "YOLOYARD_SSH": "1" if keys else "0",
        "YOLOYARD_SSH_KEYS": "\n".join(keys),
        _SOURCE: _source(folder),
        **asked,
        **choose_ports(host, address, before, asked),
        "YOLOYARD_TAG": tag,
    }
    return settings, service


def _data_folder(host: Host, given: str) -> str:
    """The whole path of `--data`. Raises UsageError or UserError if it is none of `host`'s folders."""
    if host.is_remote and not given.startswith("/"):
        raise UsageError(f"--data {given} must be a whole path on the host, like /mnt/data")
    folder = given if host.is_remote else str(Path(given).resolve())
    if host.run(["test", "-d", folder]).returncode:
        raise UserError(f"--data {folder}: there is no such folder on {host}")
    return folder


def _why(host: Host, used: graphics.Graphics, gpus: str) -> str:
    if gpus == "none":
        return "no GPU, as asked for"
    if used.driver is None:
        return f"no NVIDIA GPU on {host}; training runs on the CPU, slowly"
    each = ", ".join(f"{name} ({value})" for name, value in zip(used.names, used.capabilities, strict=True))
    return f"the newest for driver {used.driver} and {each}"


def _find_image(host: Host, runner: Engine, settings: dict[str, str]) -> None:
    reference = _image(settings)
    if host.run([runner.name, "image", "inspect", reference]).returncode == 0:
        return
    if os.environ.get("YOLOYARD_IMAGE"):
        log.info(f"pulling {reference}")
        if host.call([runner.name, "pull", reference]):
            raise UserError(f"{reference} can't be pulled on {host} ($YOLOYARD_IMAGE names the registry's path)")
        return
    if host.is_remote and send_image(reference, host, runner.name):
        return
    where = " here; up then sends it there" if host.is_remote else ""
    raise UserError(
        f"there is no image {reference} on {host}: yoloyard image build {settings['YOLOYARD_TAG']} makes it{where}. "
        "A team sets YOLOYARD_IMAGE to its registry's path, and it is pulled"
    )


def _start(project: Project, runner: Engine) -> None:
    done = project.host.run(project.compose(runner, "up", "--detach"))
    if done.returncode or project.status(runner) is None:
        said = (done.stderr or done.stdout).strip()
        raise UserError(f"{' '.join(runner.compose)} could not start the container:\n{said}")
    _wait(project, runner)


def _wait(project: Project, runner: Engine) -> None:
    """Until the container is healthy. Raises UserError with its last lines if it stops or takes too long."""
    end = time.monotonic() + HEALTHY_SECONDS
    while (status := project.status(runner)) and status.running and time.monotonic() < end:
        if status.health in ("", "healthy"):
            return
        time.sleep(0.5)
    state = f"is {status.health} after {HEALTHY_SECONDS:.0f} s" if status and status.running else "stopped"
    if status and not status.running:
        state += f" (exit status {status.exit_code})"
    lines = project.log_end(runner, status.id) if status else ""
    raise UserError(f"the container {state}; its last lines:\n{lines}")


def _print_ways_in(host: Host, on: str | None, settings: dict[str, str]) -> None:
    jupyter_port, ssh_port, board = (int(settings[name]) for name in PORTS)
    where = f" --on {on}" if on else ""
    shown = settings if not host.is_remote else {"YOLOYARD_JUPYTER_TOKEN": settings["YOLOYARD_JUPYTER_TOKEN"]}
    address = _reachable(shown.get("YOLOYARD_ADDRESS", "127.0.0.1"))
    if host.is_remote:
        forwards = _forwards(settings, {name: int(settings[name]) for name in PORTS})
        tunnel = shlex.join(["ssh", *host.port_option(), "-N", *forwards, host.login])
        log.info(f"Tunnel:      {tunnel}   (or: yoloyard jupyter{where})")
    log.info(f"Jupyter:     {jupyter_url(shown, jupyter_port)}")
    log.info(f"TensorBoard: http://{address}:{board}/")
    if settings.get("YOLOYARD_SSH") == "1":
        jump = f" -J {host.login}{f':{host.port}' if host.port else ''}" if host.is_remote else ""
        log.info(f"SSH:         ssh{jump} -p {ssh_port} {USER}@{address}")
    log.info(f"Shell:       yoloyard shell{where}")
    log.info(f"Stop:        yoloyard down{where}")


def _forwards(settings: dict[str, str], local: dict[str, int]) -> list[str]:
    there = settings.get("YOLOYARD_ADDRESS", "127.0.0.1")
    names = ("YOLOYARD_JUPYTER_PORT", "YOLOYARD_TENSORBOARD_PORT")
    return [word for name in names for word in ("-L", f"{local[name]}:{_reachable(there)}:{settings[name]}")]


def _reachable(address: str) -> str:
    return "127.0.0.1" if address == "0.0.0.0" else address  # every address of the machine: this one is among them


def _check_source(folder: Path, project: Project, settings: dict[str, str], anyway: bool) -> None:
    before = settings.get(_SOURCE)
    if project.host.is_remote and before and before != _source(folder) and not anyway:
        raise UserError(
            f"{project.host}:{project.folder} was copied from {before}, not from {_source(folder)}: "
            "rename this folder, or copy over it with --yes"
        )


def _source(folder: Path) -> str:
    return f"{os.uname().nodename}:{folder.resolve()}"


def _image(settings: dict[str, str]) -> str:
    return f"{settings['YOLOYARD_IMAGE']}:{settings['YOLOYARD_TAG']}"
