"""What a container of yoloyard does from start to end: make the user, start the services, run the command.

    entrypoint.py [COMMAND ...]    does all of this and exits with the status of the command
    entrypoint.py health           exits with 0 if each service that is on answers

docs/container.md names the environment variables. It needs Python's standard library, and s6 to keep services running.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent  # with sshd_config and jupyter_config.json
HOME = Path("/home/yard")
WORKSPACE = Path("/workspace")
KEYS = Path("/etc/yoloyard/keys")
MOUNTED_KEYS = Path("/run/secrets/authorized_keys")
SECRETS = ("YOLOYARD_JUPYTER_TOKEN", "YOLOYARD_JUPYTER_PASSWORD_HASH", "YOLOYARD_SSH_KEYS")
NOT_FOR_SESSIONS = (*SECRETS, "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "TERM", "_")
PROGRAMS = {"JUPYTER": ("jupyter-lab", 8888), "SSH": ("sshd", 2222), "TENSORBOARD": ("tensorboard", 6006)}  # and ports
# Programs that run the work of others and have none to save. A signal to them would hang up what runs in them.
HOLDERS = {"tini", "docker-init", "catatonit", "s6-svscan", "s6-supervise", "jupyter-lab", "sshd", "sshd-session",
           "tmux: server", "screen", "node", "sh", "dash", "bash", "zsh", "fish", "login", "su"}  # fmt: skip
# s6 starts a service again a second after it ended, and gives up after five times in a minute.
FINISH = """echo "yoloyard: {name} ended (status $1, signal $2)" >&2
exec s6-permafailon 60 5 0-255,SIGABRT,SIGBUS,SIGILL,SIGKILL,SIGSEGV true"""


class WrongError(Exception):
    """A value that cannot be used. The message says which one and what to do."""


def say(line: str) -> None:
    print(f"yoloyard: {line}", file=sys.stderr, flush=True)


Ids = tuple[int, int] | None  # uid and gid; None: this process may not change its user


@dataclass
class Settings:
    """What the environment variables ask for."""

    on: tuple[str, ...]  # of PROGRAMS
    ports: dict[str, int]
    bind: str
    uid: int
    gid: int
    token: str
    token_made: bool  # made here, so it is printed
    password_hash: str
    ssh_keys: str
    stop_seconds: float
    notes: list[str]  # what to tell the user


def read_number(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    word = environment.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,10}", word) or not least <= int(word) <= most:
        raise WrongError(f"{name} is {word!r}: it must be a whole number from {least} to {most}")
    return int(word)


def read_settings(environment: Mapping[str, str], root: bool, workspace: Path = WORKSPACE) -> Settings:
    """Raises WrongError for a value that cannot be used."""
    on, ports = [], {}
    for name, (_, default) in PROGRAMS.items():
        ports[name] = read_number(environment, f"YOLOYARD_{name}_PORT", default, 1, 65535)
        word = environment.get(f"YOLOYARD_{name}", "0")
        if word not in ("0", "1"):
            raise WrongError(f"YOLOYARD_{name} is {word!r}: it must be 1 (on) or 0 (off)")
        on += [name] if word == "1" else []
    for name in on:
        if [ports[other] for other in on].count(ports[name]) > 1:
            raise WrongError(f"YOLOYARD_{name}_PORT is {ports[name]}, which another service has too")
    bind = environment.get("YOLOYARD_BIND", "0.0.0.0")
    if not re.fullmatch(r"[0-9a-fA-F.:]+", bind):
        raise WrongError(f"YOLOYARD_BIND is {bind!r}: it must be an address such as 0.0.0.0 or 127.0.0.1")
    for name in SECRETS[:2]:
        if environment.get(name, "x").strip() == "":
            raise WrongError(f"{name} is empty, which would let anybody in: leave it out and a token is made")
    password_hash = environment.get("YOLOYARD_JUPYTER_PASSWORD_HASH", "")
    if password_hash and not re.fullmatch(r"(argon2|sha1|sha256|sha512):.+", password_hash):
        raise WrongError("YOLOYARD_JUPYTER_PASSWORD_HASH is no hash: make one with "
                    "python -c 'from jupyter_server.auth import passwd; print(passwd())'")  # fmt: skip
    token = environment.get("YOLOYARD_JUPYTER_TOKEN", "")
    uid, gid, notes = read_owner(environment, root, workspace)
    ssh_keys = environment.get("YOLOYARD_SSH_KEYS", "")
    if not ssh_keys and MOUNTED_KEYS.is_file():
        ssh_keys = MOUNTED_KEYS.read_text()
    if "SSH" in on and not root:
        on.remove("SSH")
        notes.append("SSH is off: sshd can only be started by root, and this container runs as another user")
    elif "SSH" in on and not ssh_keys.strip():
        on.remove("SSH")
        notes.append(f"SSH is off: no keys; give YOLOYARD_SSH_KEYS or mount {MOUNTED_KEYS}")
    return Settings(
        on=tuple(on),
        ports=ports,
        bind=bind,
        uid=uid,
        gid=gid,
        token=token or secrets.token_hex(24),
        token_made=not token and not password_hash,  # with a password, the token is for this program alone
        password_hash=password_hash,
        ssh_keys=ssh_keys,
        stop_seconds=read_number(environment, "YOLOYARD_STOP_SECONDS", 100, 1, 86400),
        notes=notes,
    )


def read_owner(environment: Mapping[str, str], root: bool, workspace: Path) -> tuple[int, int, list[str]]:
    """Uid and gid that files in the project folder shall belong to, and notes."""
    if not root:
        return os.geteuid(), os.getegid(), []
    notes = []
    found = workspace.stat() if workspace.is_dir() else None
    uid = found.st_uid if found else 1000
    if uid == 0 and is_rootless() and "YOLOYARD_UID" not in environment:
        notes.append("root of this rootless container is you outside it: the user yard is root here")
    elif uid in (0, 65534) and "YOLOYARD_UID" not in environment:
        owner = "root" if uid == 0 else "nobody known here"  # 65534: an owner that this user namespace does not know
        uid = 1000
        notes.append(f"{workspace} belongs to {owner}; the user yard has uid 1000 (YOLOYARD_UID changes it)")
    uid = read_number(environment, "YOLOYARD_UID", uid, 0, 2**31 - 1)
    group = found.st_gid if found and found.st_uid == uid else uid
    return uid, read_number(environment, "YOLOYARD_GID", group, 0, 2**31 - 1), notes


def is_rootless() -> bool:
    """Is root here somebody else outside?"""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def make_user(uid: int, gid: int) -> None:
    """Gives the user yard these ids, first in the file so that names are found for them, and its home."""
    users, group = f"yard:x:{uid}:{gid}::{HOME}:/bin/bash", f"yard:x:{gid}:"
    for path, line in (Path("/etc/passwd"), users), (Path("/etc/group"), group):
        lines = path.read_text().splitlines()
        if line not in lines:
            rest = [other for other in lines if not other.startswith("yard:")]
            first = [rest.pop(0)] if uid == 0 or gid == 0 else []  # root stays root by name
            path.write_text("\n".join([*first, line, *rest]) + "\n")
    device = HOME.stat().st_dev
    for folder, folders, files in os.walk(HOME):
        here = Path(folder)
        folders[:] = [each for each in folders if (here / each).lstat().st_dev == device]  # not what is mounted there
        for each in (here, *(here / file for file in files)):
            if each.lstat().st_dev == device and each.lstat().st_uid != uid:
                os.lchown(each, uid, gid)
    for path in (HOME / ".cache", WORKSPACE, Path("/data")):
        if path.is_dir() and path.stat().st_uid in (0, 1000) and path.stat().st_uid != uid and not any(path.iterdir()):
            os.chown(path, uid, gid)  # a new volume


def user_environment(environment: Mapping[str, str], root: bool) -> dict[str, str]:
    """The environment of the command and of the services: without their secrets."""
    made = {name: value for name, value in environment.items() if name not in SECRETS}
    home = HOME if root or os.access(HOME, os.W_OK) else Path(tempfile.gettempdir()) / f"yard-{os.geteuid()}"
    home.mkdir(exist_ok=True, mode=0o700)
    made |= {"HOME": str(home), "USER": "yard", "LOGNAME": "yard", "SHELL": "/bin/bash"}
    if home != HOME and os.access(HOME / ".cache", os.W_OK):
        made.setdefault("XDG_CACHE_HOME", str(HOME / ".cache"))
    return made


def sshd_config(settings: Settings, environment: Mapping[str, str], state: Path) -> str:
    """The file sshd_config, and what differs from start to start. A session has the container's environment."""
    escaped = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in sorted(environment.items())}
    variables = [
        f'"{name}={value}"'
        for name, value in escaped.items()
        if name not in NOT_FOR_SESSIONS and re.fullmatch(r"\w+", name) and value.isprintable()
    ]
    address = f"[{settings.bind}]" if ":" in settings.bind else settings.bind
    return f"""ListenAddress {address}:{settings.ports["SSH"]}
HostKey {KEYS}/ssh_host_ed25519_key
AuthorizedKeysFile {state}/authorized_keys
PermitRootLogin {"prohibit-password" if settings.uid == 0 else "no"}
SetEnv {" ".join(variables)}
{HERE.joinpath("sshd_config").read_text()}"""


def jupyter_config(settings: Settings) -> str:
    config = json.loads(HERE.joinpath("jupyter_config.json").read_text())
    root = str(WORKSPACE if WORKSPACE.is_dir() else HOME)
    config["ServerApp"] |= {"ip": settings.bind, "port": settings.ports["JUPYTER"], "root_dir": root}
    config["ServerApp"]["allow_root"] = settings.uid == 0
    config["IdentityProvider"] = {"token": settings.token}
    config["PasswordIdentityProvider"]["hashed_password"] = settings.password_hash
    return json.dumps(config)


def write_secret(path: Path, text: str, owner: Ids = None) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
    if owner:
        os.chown(path, *owner)


def prepare_services(settings: Settings, environment: Mapping[str, str], state: Path, ids: Ids) -> Path:
    """Writes what the services read into `state` and prints how to reach them.

    Returns a folder with one for each service, as s6 wants it: `run` starts it, `finish` is called when it has ended.
    """
    found = {name: shutil.which(PROGRAMS[name][0], path=environment.get("PATH")) for name in settings.on}
    for name, program in found.items():
        if not program:
            raise WrongError(f"YOLOYARD_{name} is 1, but {PROGRAMS[name][0]} is not in this image: "
                        "the runtime stage has TensorBoard alone; take the tag without -runtime")  # fmt: skip
    commands, ports = {}, settings.ports
    if "JUPYTER" in settings.on:
        write_secret(state / "jupyter_config.json", jupyter_config(settings), ids)
        commands["jupyter"] = ["jupyter-lab", f"--config={state}/jupyter_config.json"]
        shown = f"?token={settings.token}" if settings.token_made else ""
        say(f"JupyterLab: http://127.0.0.1:{ports['JUPYTER']}/lab{shown}")
    if "SSH" in settings.on:
        keys, host_key = state / "authorized_keys", KEYS / "ssh_host_ed25519_key"
        keys.write_text(settings.ssh_keys.rstrip() + "\n")
        if subprocess.run(["ssh-keygen", "-l", "-f", keys], capture_output=True, check=False).returncode:
            raise WrongError("YOLOYARD_SSH_KEYS has no public key: give lines as in ~/.ssh/id_ed25519.pub")
        if not host_key.exists():  # the volume has none yet
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "yoloyard", "-f", str(host_key)]
            subprocess.run(command, check=True)
        Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)
        write_secret(state / "sshd_config", sshd_config(settings, environment, state))
        commands["ssh"] = [str(found["SSH"]), "-D", "-e", "-f", f"{state}/sshd_config"]
        say(f"SSH: port {ports['SSH']}, user yard")
    if "TENSORBOARD" in settings.on:
        address = [f"--host={settings.bind}", f"--port={ports['TENSORBOARD']}"]
        commands["tensorboard"] = ["tensorboard", f"--logdir={WORKSPACE}/runs", *address]
        say(f"TensorBoard: http://127.0.0.1:{ports['TENSORBOARD']}/")
    shutil.rmtree(state / "services", ignore_errors=True)  # of the last start of this container
    for name, command in commands.items():
        if ids and name != "ssh":
            user = ["-u", str(ids[0]), "-g", str(ids[1]), "-G", ",".join(map(str, groups() or ids[1:]))]
            command = ["s6-applyuidgid", *user, *command]
        folder = state / "services" / name
        folder.mkdir(parents=True)
        run = f"cd {WORKSPACE} 2> /dev/null\nexec {shlex.join(command)}"
        for script, text in (("run", run), ("finish", FINISH.format(name=name))):
            (folder / script).write_text(f"#!/bin/sh\n{text}\n")
            (folder / script).chmod(0o755)
    return state / "services"


def groups() -> list[int]:
    """The groups that --group-add gave this container, without root's."""
    return [each for each in os.getgroups() if each]


def start(command: list[str], environment: dict[str, str], ids: Ids, **options: Any) -> subprocess.Popen[bytes]:
    """A child that no signal is blocked for, as the user `ids` (uid, gid) where given."""
    if ids:
        options |= {"user": ids[0], "group": ids[1], "extra_groups": groups()}
    options["preexec_fn"] = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, [])  # there are no threads
    return subprocess.Popen(command, env=environment, **options)


def ask(settings: Settings, name: str, request: str) -> bytes:
    """What a service answers; of sshd, which speaks first, its first line."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.bind, settings.bind)
    with socket.create_connection((host, settings.ports[name]), timeout=5) as connection:
        connection.sendall(request.encode())
        answer = connection.recv(4096)
        while request and (more := connection.recv(4096)):
            answer += more
        return answer


@dataclass
class Process:
    parent: int
    name: str
    saves: bool  # it catches SIGTERM, so it has something to put in order


def processes() -> dict[int, Process]:
    """All that run in this PID namespace, by their number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = dict(re.findall(r"^(\w+):\t(.*)$", (folder / "status").read_text(), re.MULTILINE))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended just now
            if status["State"][0] not in "ZX":
                saves = bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)
                found[int(folder.name)] = Process(int(status["PPid"]), status["Name"], saves)
    return found


def busy(table: dict[int, Process], top: list[int], signalled: set[int]) -> list[int]:
    """The topmost processes from `top` on that catch SIGTERM. What they started is their own business."""
    found = []
    for number in top:
        process = table[number]
        if process.name == "tensorboard":
            continue  # it only reads
        if number in signalled or (process.saves and number > 1 and process.name not in HOLDERS):
            found.append(number)
        else:
            found += busy(table, [child for child, each in table.items() if each.parent == number], signalled)
    return found


def let_save(settings: Settings) -> None:
    """SIGTERM, once, to each process that catches it, wherever it was started, and time until all have ended."""
    # With --pid=host, PID 1 is neither this process nor an init that started it, and others' processes are in sight.
    table, number = processes(), os.getpid()
    while number > 1:
        number = table[number].parent
        if number not in table or table[number].name not in HOLDERS:
            break
    sees_all = number == 1
    request = f"GET /api/kernels HTTP/1.0\r\nHost: localhost\r\nAuthorization: token {settings.token}\r\n\r\n"
    signalled: set[int] = set()
    deadline = time.monotonic() + settings.stop_seconds
    while time.monotonic() < deadline:
        table = processes()
        top = [n for n, each in table.items() if each.parent not in table] if sees_all else [os.getpid()]
        found = set(busy(table, top, signalled))
        kernels = {n for n in found & signalled if table.get(table[n].parent, table[n]).name == "jupyter-lab"}
        if kernels:  # a kernel itself goes on after the training in it has saved: all its cells have ended
            try:
                found -= set() if b'"busy"' in ask(settings, "JUPYTER", request) else kernels
            except OSError as error:
                say(f"JupyterLab does not say what its kernels do: {error}")
                found -= kernels
        if not found:
            return
        for number in found - signalled:
            say(f"stops {table[number].name} (process {number}) and waits for it")
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(number, signal.SIGTERM)
        signalled |= found
        time.sleep(0.2)
    say(f"{settings.stop_seconds:.0f} s are over (YOLOYARD_STOP_SECONDS): what still runs is ended")


def end(child: subprocess.Popen[bytes] | None, seconds: float, *signals: signal.Signals) -> None:
    """The signals, and SIGKILL if it still runs after `seconds`."""
    if child is None or child.poll() is not None:
        return
    for each in signals:
        child.send_signal(each)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def run(services: subprocess.Popen[bytes] | None, command: subprocess.Popen[bytes] | None, settings: Settings) -> int:
    """Waits until the command ends (without one: s6, which runs the services) or a signal comes. The exit status."""
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    awaited = command or services
    while awaited and awaited.poll() is None:
        came = signal.sigwaitinfo(signals).si_signo
        if came == signal.SIGINT and command and os.isatty(0):
            continue  # Ctrl-C in a terminal has reached the command, too, which decides
        if came != signal.SIGCHLD:
            say(f"{signal.Signals(came).name}: stopping")
            break
    let_save(settings)
    end(command, 5, signal.SIGTERM, signal.SIGHUP)  # SIGHUP is for shells
    end(services, 10, signal.SIGTERM)
    status = command.returncode if command else 0
    return status if status >= 0 else 128 - status


def health(settings: Settings) -> int:
    """0 if each service that is on answers."""
    for name in settings.on:
        program, path = PROGRAMS[name][0], "/api" if name == "JUPYTER" else "/"
        request = "" if name == "SSH" else f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        try:
            answer = ask(settings, name, request)
        except OSError as error:
            say(f"{program} does not answer: {error}")
            return 1
        if not re.match(rb"SSH-|HTTP/1\.\d 200", answer):
            say(f"{program} answers {answer[:40]!r}")
            return 1
    return 0


USAGE = """No service is on and there is no command: nothing to do. For example

    IMAGE yoloyard train --data /data/data.yaml     a command, as the user who owns /workspace
    -e YOLOYARD_TENSORBOARD=1 IMAGE                 a service; in the devel stage also YOLOYARD_JUPYTER and YOLOYARD_SSH
"""


def main(argv: list[str]) -> int:
    root = os.geteuid() == 0
    try:
        settings = read_settings(os.environ, root)
        if argv == ["health"]:
            return health(settings)
        for note in settings.notes:
            say(note)
        if not settings.on and not argv:
            print(USAGE, end="")
            return 0
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
        ids = (settings.uid, settings.gid) if root else None
        if root:
            make_user(settings.uid, settings.gid)
        state = Path("/run/yoloyard") if root else Path(tempfile.mkdtemp(prefix="yoloyard-"))
        state.mkdir(exist_ok=True, mode=0o755)
        folder = prepare_services(settings, os.environ, state, ids)
    except WrongError as error:
        say(str(error))
        return 2
    environment = user_environment(os.environ, root)
    services = command = None
    if settings.on:
        options = {"stdin": subprocess.DEVNULL, "stdout": sys.stderr, "start_new_session": True}
        services = start(["s6-svscan", str(folder)], environment, None, **options)
    if root and os.isatty(0):
        os.fchown(0, settings.uid, -1)
    if argv:
        try:
            command = start(argv, environment, ids)
        except (FileNotFoundError, PermissionError) as error:
            say(f"{argv[0]} cannot be started: {error.strerror}")
            return 127 if isinstance(error, FileNotFoundError) else 126
    return run(services, command, settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
