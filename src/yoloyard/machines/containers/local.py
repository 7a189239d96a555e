"""`yoloyard up`, `down`, `shell`, `jupyter`: the container of a project folder, here or on a host over ssh."""

import contextlib
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from yoloyard.common.errors import UsageError, UserError, last_line
from yoloyard.machines.containers.container import COMPOSE, USER, Project, Status, find_engine
from yoloyard.machines.containers.copying import copy_folder, send_image
from yoloyard.machines.containers.gpus import find_graphics, gpu_service
from yoloyard.machines.containers.host import Host, choose_ports, connect, flag, listens
from yoloyard.machines.image.versions import best_tag, find_tag, repository

log = logging.getLogger(__name__)

SAVING_SECONDS = 120  # that a training has to save when the container stops
HEALTHY_SECONDS = 180.0  # until the container must be healthy
AGAIN = "yoloyard down stops it, up starts again"
_SOURCE = "YOLOYARD_SOURCE"  # the folder that was copied to a host, and the machine that it is on

Settings = dict[str, str]  # the variables of compose.yaml


def up(
    folder: Path, on: str | None, engine: str | None, wishes: Mapping[str, str | int | None], large_is_fine: bool
) -> None:
    """Start the container of `folder`, or find it running, and say how to get in.

    `wishes`: values for the variables of compose.yaml, by their names in small letters without YOLOYARD_; None leaves
    the choice to us. Raises UserError for whatever is missing: an engine, a driver, the toolkit, an image, a free port.
    """
    started = time.monotonic()
    asked = {f"YOLOYARD_{name.upper()}": str(value) for name, value in wishes.items() if value is not None}
    with _opened(folder, on, engine) as (project, settings, status):
        host, before = project.host, settings.get("YOLOYARD_ENGINE")
        if before and project.engine != before and host.run([before, "version"]).returncode == 0:
            other = Project(host, project.folder, before).status()
            if other and other.running:
                raise UserError(f"the container is running with {before}: {AGAIN}")
        if "YOLOYARD_TAG" in asked:
            asked["YOLOYARD_TAG"] = find_tag(asked["YOLOYARD_TAG"]).name  # it may be an alias
        if data := asked.get("YOLOYARD_DATA"):
            if host.is_remote and not data.startswith("/"):
                raise UsageError(f"--data {data} must be a whole path on the host, like /mnt/data")
            asked["YOLOYARD_DATA"] = data if host.is_remote else str(Path(data).resolve())
            if host.run(["test", "-d", asked["YOLOYARD_DATA"]]).returncode:
                raise UserError(f"--data {asked['YOLOYARD_DATA']}: there is no such folder on {host}")
        if status and status.running:
            _check_known(project, settings, status)
            if changed := [flag(name) for name, value in asked.items() if settings.get(name) != value]:
                raise UserError(f"the container is running with another {', '.join(changed)}: {AGAIN}")
            log.info(f"the container is running already ({project.engine}, image {_image(settings)})")
            _wait(project)
        else:
            if host.is_remote:
                source, now = settings.get(_SOURCE), _source(folder)
                if source and source != now and not large_is_fine:
                    remedy = "rename this folder, or copy over it with --yes"
                    raise UserError(f"{host}:{project.folder} was copied from {source}, not from {now}: {remedy}")
                copy_folder(folder, host, project.folder, large_is_fine)
            settings, service = _choose(folder, project, settings, asked)
            _find_image(project, settings)
            project.write(settings, service)
            try:
                done = host.run(project.compose("up", "--detach"))
                if done.returncode or project.status() is None:
                    said = (done.stderr or done.stdout).strip()
                    raise UserError(f"{' '.join(COMPOSE[project.engine])} could not start the container:\n{said}")
                _wait(project)
            except KeyboardInterrupt:
                log.info("the container may go on starting; yoloyard down stops it")
                raise
        _print_ways_in(host, on, settings)
        log.info(f"up in {time.monotonic() - started:.1f} s")


def down(folder: Path, on: str | None, engine: str | None, volumes: bool) -> None:
    """Stop the container of `folder`, and remove it; what trains has two minutes to save."""
    with _opened(folder, on, engine) as (project, settings, status):
        host = project.host
        if status:
            _check_known(project, settings, status)
        if not settings or (status is None and not volumes):
            log.info(f"no container of {project.folder} on {host}")
            return
        log.info(f"stopping; what trains has {SAVING_SECONDS} s to save")
        argv = ["down", "--timeout", str(SAVING_SECONDS), *(["--volumes"] if volumes else [])]
        done = host.run(project.compose(*argv))
        if done.returncode or project.status() is not None:
            said = last_line(done.stderr) or last_line(done.stdout)
            raise UserError(f"{COMPOSE[project.engine][0]} could not stop it: {said}")
        log.info(f"stopped; its volumes are {'deleted' if volumes else 'kept (--volumes deletes them)'}")
        if host.is_remote:
            port = f" -e 'ssh -p {host.port}'" if host.port else ""
            remote = shlex.quote(f"{host.login}:{project.folder}/runs")
            log.info(f"bring the runs back: rsync -a{port} {remote} .")


def shell(folder: Path, on: str | None, engine: str | None, command: Sequence[str]) -> int:
    """Run `command`, or a shell, in the container as the user there; its exit status."""
    with _opened(folder, on, engine) as (project, settings, status):
        running = _check_running(project, settings, status)
        tty = os.isatty(0) and os.isatty(1)
        argv = [project.engine, "exec", "--interactive", *(["--tty"] if tty else []), "--user", USER]
        argv += ["--workdir", "/workspace", "--env", f"HOME=/home/{USER}", "--env", f"USER={USER}"]
        if tty:
            argv += ["--env", f"TERM={os.environ.get('TERM', 'xterm')}"]
        return project.host.call([*argv, running.id, *(command or ["bash"])], tty)


def jupyter(folder: Path, on: str | None, engine: str | None, show: Callable[[str], object]) -> None:
    """Print JupyterLab's address and hand it to `show`; on a host, keep a tunnel open until Ctrl-C."""
    with _opened(folder, on, engine) as (project, settings, status):
        _check_running(project, settings, status)
        host = project.host
        if not host.is_remote:
            address = _jupyter_url(_reachable(settings), settings)
            log.info(address)
            show(address)
            return
        ports = choose_ports(Host(), "127.0.0.1", settings, {})  # the same numbers here where they are free
        board = ports["YOLOYARD_TENSORBOARD_PORT"]
        tunnel = host.tunnel(_forwards(settings, ports))
        try:
            # ssh opens them in the order of its flags, and ends if one can't be
            while tunnel.poll() is None and not listens(int(board)):
                time.sleep(0.05)
            if tunnel.poll() is not None:
                raise UserError(f"the tunnel to {host} can't be opened (ssh's exit status {tunnel.returncode})")
            address = _jupyter_url("127.0.0.1", settings | ports)
            log.info(f"Jupyter:     {address}")
            log.info(f"TensorBoard: http://127.0.0.1:{board}/")
            log.info("the tunnel is open until Ctrl-C")
            show(address)
            tunnel.wait()
        finally:
            tunnel.terminate()
            tunnel.wait()
        raise UserError(f"the tunnel to {host} closed (ssh's exit status {tunnel.returncode})")


@contextlib.contextmanager
def _opened(folder: Path, on: str | None, engine: str | None) -> Iterator[tuple[Project, Settings, Status | None]]:
    """The project of `folder` on its host, what the last `up` chose, and its container if there is one.

    On another host the folder is ~/yoloyard/NAME.
    """
    with connect(on) as host:
        folder = folder.resolve()
        if folder in (Path(folder.anchor), Path.home().resolve()):
            raise UsageError(f"{folder} is no project folder; go into one, or make one")
        place = PurePosixPath(folder)
        if host.is_remote:
            place = PurePosixPath(host.ask(["sh", "-c", "cd && pwd"]).strip()) / "yoloyard" / folder.name
        project = Project(host, place)
        settings = project.settings()
        project.engine = find_engine(host, engine or settings.get("YOLOYARD_ENGINE"))
        yield project, settings, project.status()


def _check_running(project: Project, settings: Settings, status: Status | None) -> Status:
    if status is None or not status.running or not settings:
        raise UserError(f"no container of {project.folder} is running on {project.host}: yoloyard up starts it")
    return status


def _check_known(project: Project, settings: Settings, status: Status) -> None:
    if not settings:
        name, short = project.engine, status.id[:12]
        remedy = f"{name} stop --time {SAVING_SECONDS} {short} && {name} rm {short}, then up"
        raise UserError(f"there is a container of this folder, but what `up` chose for it is gone: {remedy}")


def _choose(folder: Path, project: Project, before: Settings, asked: Settings) -> tuple[Settings, dict[str, Any]]:
    """The variables of compose.yaml, and what is added to its service: GPUs, and the user of a rootless podman."""
    host, gpus = project.host, asked.get("YOLOYARD_GPUS", "all")
    if not re.fullmatch(r"all|none|\d+(,\d+)*", gpus):
        raise UsageError(f"--gpus {gpus} is neither all, none nor numbers like 0,1")
    if not re.fullmatch(r"(?i)\d+[kmg]?b?", asked.get("YOLOYARD_SHM_SIZE", "8gb")):
        raise UsageError(f"--shm-size {asked['YOLOYARD_SHM_SIZE']} is no size, such as 8gb or 512mb")
    found = find_graphics(host, gpus)
    service = {} if found.driver is None else gpu_service(host, project.engine, found.numbers)
    tag = asked.get("YOLOYARD_TAG") or best_tag(found.driver, list(found.capabilities)).name
    each = ", ".join(f"{name} ({value})" for name, value in zip(found.names, found.capabilities, strict=True))
    why = f": the newest for driver {found.driver} and {each}"
    if gpus == "none":
        why = ": no GPU, as asked for"
    elif found.driver is None:
        why = f": no NVIDIA GPU on {host}; training runs on the CPU, slowly"
    log.info(f"tag {tag}{', as asked for' if 'YOLOYARD_TAG' in asked else why}")
    rootless = ["podman", "info", "--format", "{{.Host.Security.Rootless}}"]
    if project.engine == "podman" and host.run(rootless).stdout.strip() == "true":
        # Else the folder's owner would be root inside, and files written by anybody else there belong to nobody here.
        service |= {"userns_mode": "keep-id", "user": "0:0"}
    keys = public_keys()
    sources = ", ".join(dict.fromkeys(keys.values()))
    log.info(f"SSH keys: {sources}" if keys else "no public SSH key here (ssh-keygen makes one): no SSH")
    address = asked.get("YOLOYARD_ADDRESS", "127.0.0.1")
    settings = {
        "YOLOYARD_ENGINE": project.engine,
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


def public_keys() -> dict[str, str]:
    """The user's public SSH keys, of files and agent: lines for authorized_keys, each key once, and where it was found.

    None is made here, and no private key is read.
    """
    files = [file for file in sorted((Path.home() / ".ssh").glob("*.pub")) if file.is_file()]
    texts = [(f"~/.ssh/{file.name}", file.read_text(encoding="utf-8", errors="replace")) for file in files]
    found: dict[str, tuple[str, str]] = {}
    for source, text in [*texts, ("ssh-agent", Host().run(["ssh-add", "-L"]).stdout)]:
        for line in map(str.strip, text.splitlines()):
            kind, _, rest = line.partition(" ")
            # authorized_keys takes certificates only from an authority.
            if kind.startswith(("ssh-", "ecdsa-", "sk-")) and rest and "-cert-v01@" not in kind:
                found.setdefault(rest.split()[0], (line, source))
    return dict(found.values())


def _find_image(project: Project, settings: Settings) -> None:
    host, engine, reference = project.host, project.engine, _image(settings)
    if host.run([engine, "image", "inspect", reference]).returncode == 0:
        return
    if os.environ.get("YOLOYARD_IMAGE"):
        log.info(f"pulling {reference}")
        if host.call([engine, "pull", reference]):
            raise UserError(f"{reference} can't be pulled on {host} ($YOLOYARD_IMAGE names the registry's path)")
    elif not host.is_remote or not send_image(reference, host, engine):
        where = " here; up then sends it there" if host.is_remote else ""
        remedy = f"yoloyard image build {settings['YOLOYARD_TAG']} makes it{where}"
        team = "A team sets YOLOYARD_IMAGE to its registry's path, and it is pulled"
        raise UserError(f"there is no image {reference} on {host}: {remedy}. {team}")


def _wait(project: Project) -> None:
    """Until the container is healthy. Raises UserError with its last lines if it stops or takes too long."""
    end = time.monotonic() + HEALTHY_SECONDS
    while (status := project.status()) and status.running and time.monotonic() < end:
        if status.health in ("", "healthy"):
            return
        time.sleep(0.5)
    state, lines = "stopped", ""
    if status:
        said = project.host.run([project.engine, "logs", "--tail", "20", status.id])
        lines = (said.stdout + said.stderr).strip()
        state += f" (exit status {status.exit_code})"
        if status.running:
            state = f"is {status.health} after {HEALTHY_SECONDS:.0f} s"
    raise UserError(f"the container {state}; its last lines:\n{lines}")


def _print_ways_in(host: Host, on: str | None, settings: Settings) -> None:
    where, address = f" --on {on}" if on else "", "127.0.0.1" if host.is_remote else _reachable(settings)
    if host.is_remote:
        tunnel = shlex.join(["ssh", *host.port_option(), "-N", *_forwards(settings, settings), host.login])
        log.info(f"Tunnel:      {tunnel}   (or: yoloyard jupyter{where})")
    log.info(f"Jupyter:     {_jupyter_url(address, settings)}")
    log.info(f"TensorBoard: http://{address}:{settings['YOLOYARD_TENSORBOARD_PORT']}/")
    if settings.get("YOLOYARD_SSH") == "1":
        jump = f" -J {host.login}{f':{host.port}' if host.port else ''}" if host.is_remote else ""
        log.info(f"SSH:         ssh{jump} -p {settings['YOLOYARD_SSH_PORT']} {USER}@{address}")
    log.info(f"Shell:       yoloyard shell{where}")
    log.info(f"Stop:        yoloyard down{where}")


def _jupyter_url(address: str, settings: Settings) -> str:
    return f"http://{address}:{settings['YOLOYARD_JUPYTER_PORT']}/lab?token={settings['YOLOYARD_JUPYTER_TOKEN']}"


def _forwards(settings: Settings, local: Settings) -> list[str]:
    there, names = _reachable(settings), ("YOLOYARD_JUPYTER_PORT", "YOLOYARD_TENSORBOARD_PORT")
    return [word for name in names for word in ("-L", f"{local[name]}:{there}:{settings[name]}")]


def _reachable(settings: Settings) -> str:
    address = settings.get("YOLOYARD_ADDRESS", "127.0.0.1")
    return "127.0.0.1" if address == "0.0.0.0" else address  # every address of the host: this one is among them


def _source(folder: Path) -> str:
    return f"{os.uname().nodename}:{folder.resolve()}"


def _image(settings: Settings) -> str:
    return f"{settings['YOLOYARD_IMAGE']}:{settings['YOLOYARD_TAG']}"
