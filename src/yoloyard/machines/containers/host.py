"""A host to run commands on, and its free ports: this machine, or another one over the system's own ssh client."""

import contextlib
import errno
import ipaddress
import os
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from yoloyard.common.errors import UsageError, UserError, last_line, printable

CONNECT_SECONDS = 15
# By their names in compose.yaml, with the ones that are tried first.
PORTS = {"YOLOYARD_JUPYTER_PORT": 8888, "YOLOYARD_SSH_PORT": 2222, "YOLOYARD_TENSORBOARD_PORT": 6006}


@dataclass(frozen=True)
class Host:
    """`login` is "user@host", empty for this machine. `socket` is where the one open connection is shared."""

    login: str = ""
    port: int | None = None
    socket: Path | None = None

    @property
    def is_remote(self) -> bool:
        return bool(self.login)

    def __str__(self) -> str:
        return self.login or "this machine"

    def command(self, argv: Sequence[str], tty: bool = False) -> list[str]:
        """The argv of a local process that runs `argv` on this host; with a terminal of its own if `tty`."""
        if not self.is_remote:
            return list(argv)
        return [*self.ssh(), *(["-tt"] if tty else []), "--", self.login, shlex.join(argv)]

    def ssh(self) -> list[str]:
        """The ssh client with what this host needs, but without its name."""
        alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
        shared = ["-o", f"ControlPath={self.socket}"] if self.socket else []
        return [
            "ssh",
            "-o",
            "BatchMode=yes",
            "-o",
            f"ConnectTimeout={CONNECT_SECONDS}",
            *alive,
            *shared,
            *self.port_option(),
        ]

    def port_option(self) -> list[str]:
        """`-p PORT` of ssh where the address names a port."""
        return ["-p", str(self.port)] if self.port else []

    def run(self, argv: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        """Run `argv` with `text` as input, and keep what it prints. A command that isn't there has the status 127.

        Raises UserError if the connection breaks.
        """
        call = self.command(argv)
        try:
            done = subprocess.run(
                call, input=text, text=True, errors="replace", env=environment(), capture_output=True, check=False
            )
        except (FileNotFoundError, PermissionError) as error:
            return subprocess.CompletedProcess(call, 127, "", f"{argv[0]}: {error.strerror}")
        if self.is_remote and done.returncode == 255:
            said = last_line(done.stderr) or "ssh gives no reason"
            raise UserError(f"the connection to {self} broke ({said}): run the same command again, it goes on")
        return done

    def ask(self, argv: Sequence[str], text: str = "") -> str:
        """What `argv` prints. Raises UserError with its last line if it fails."""
        done = self.run(argv, text)
        if done.returncode:
            said = last_line(done.stderr) or last_line(done.stdout)
            raise UserError(f"{shlex.join(argv[:3])} failed on {self} (exit status {done.returncode}): {said}")
        return done.stdout

    def call(self, argv: Sequence[str], tty: bool = False) -> int:
        """Run `argv` with this process's own input and output; its exit status."""
        try:
            return subprocess.call(self.command(argv, tty), env=environment())
        except FileNotFoundError as error:
            raise UserError(f"{argv[0]} is not installed on {self}") from error

    def tunnel(self, forwards: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start an ssh client that does nothing but forward ports (`-L 8888:127.0.0.1:8888` ...), until it is ended."""
        own = replace(self, socket=None)  # over a shared connection the client would end at once
        options = ["-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes", "-N"]
        return subprocess.Popen([*own.ssh(), *options, *forwards, "--", self.login])


def parse_host(address: str | None) -> Host:
    """`ssh://user@host[:port]`, or None for this machine. Raises UsageError for anything else."""
    if address is None:
        return Host()
    try:
        parts = urlsplit(address)
        name, port, user = parts.hostname or "", parts.port, parts.username or ""
    except ValueError:
        parts, name, port, user = urlsplit(""), "", None, ""
    wrong = not name or parts.scheme != "ssh" or parts.password or parts.path.strip("/") or parts.query
    if wrong or any(word.startswith("-") or not word.isprintable() for word in (user, name)):
        raise UsageError(f"--on {printable(address)} is not an address; it looks like ssh://user@host or ...@host:2222")
    return Host(f"{user}@{name}" if user else name, port)


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Host]:
    """The host at `ssh://user@host[:port]`, or this machine; a connection is opened once and closed at the end.

    Raises UsageError for a wrong address, UserError if the host can't be reached or doesn't let us in.
    """
    host = parse_host(address)
    if not host.is_remote:
        yield host
        return
    # The path of a socket may have about 100 characters, so it is in a short folder.
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as folder:
        shared = replace(host, socket=Path(folder) / "ssh")
        opened = [*shared.ssh(), "-o", "ControlMaster=yes", "-N", "-f", "--", shared.login]
        # stderr goes to a file: the connection stays in the background and would hold a pipe open for ever.
        with tempfile.TemporaryFile() as said:
            try:
                status = subprocess.call(opened, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
            except FileNotFoundError as error:
                raise UserError("the ssh client is not installed here (package openssh-client)") from error
            if status:
                said.seek(0)
                raise _refused(shared, said.read().decode(errors="replace"))
        try:
            yield shared
        finally:
            closed = [*shared.ssh(), "-O", "exit", "--", shared.login]
            subprocess.call(closed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _refused(host: Host, said: str) -> UserError:
    by_hand = shlex.join(["ssh", *host.port_option(), host.login])
    message = f"{host} can't be reached: {last_line(said)}. By hand: {by_hand}"
    if "IDENTIFICATION HAS CHANGED" in said:
        message = f"{host} has another host key than it had before: a new machine at an old address, or somebody in "
        message += "between. If you know that it is new: ssh-keygen -R HOST, then log in once by hand"
    elif "Host key verification failed" in said:
        message = f"{host} is not known here yet: log in once by hand and compare its fingerprint: {by_hand}"
    elif "Permission denied" in said:
        remedy = f"put your public key there: ssh-copy-id {by_hand.removeprefix('ssh ')}"
        message = f"{host} refuses your key: {last_line(said)}. Passwords are not asked for; {remedy}"
    return UserError(message)


def environment() -> dict[str, str]:
    """Of commands: without YOLOYARD_ variables, which Compose would take rather than those in the file it is given."""
    return {name: value for name, value in os.environ.items() if not name.startswith("YOLOYARD_")}


def choose_ports(host: Host, address: str, before: dict[str, str], asked: dict[str, str]) -> dict[str, str]:
    """A free port of `host` for each service: the one asked for, else the last one, else the next that is free.

    Raises UserError if one that was asked for is taken, UsageError for what is no address.
    """
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise UsageError(f"--address {address} is no IPv4 address, such as 127.0.0.1 or 0.0.0.0") from None
    is_taken, chosen = _taken_ports(host, address), dict[str, str]()
    for name, default in PORTS.items():
        port = int(asked.get(name) or before.get(name) or default)
        if name not in asked:
            while is_taken(port) or str(port) in {*chosen.values(), *asked.values()}:
                port += 1
        elif str(port) in chosen.values():
            raise UsageError(f"two flags name the port {port}")
        elif is_taken(port):
            raise UserError(f"port {port} is taken on {host}: name another with {flag(name)}, or leave it out")
        chosen[name] = str(port)
    return chosen


def flag(variable: str) -> str:
    """The flag of `up` for a variable of compose.yaml: "--ssh-port" for "YOLOYARD_SSH_PORT"."""
    return "--" + variable.removeprefix("YOLOYARD_").lower().replace("_", "-")


def listens(port: int) -> bool:
    """Whether something on this machine answers on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _taken_ports(host: Host, address: str) -> Callable[[int], bool]:
    """A function that says whether something listens on a port of `host`."""
    if host.is_remote:
        rows = [line.split() for line in host.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout.splitlines()]
        # "0100007F:22B8" is an address and a port, in hexadecimal; the state 0A is "listens"
        taken = {int(row[1].rsplit(":", 1)[1], 16) for row in rows if len(row) > 3 and row[3] == "0A"}
        return taken.__contains__

    def is_taken(port: int) -> bool:
        try:
            socket.create_server((address, port)).close()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise UserError(f"can't listen at {address}: {os.strerror(error.errno or 0)}") from error
            return True
        return False

    return is_taken
