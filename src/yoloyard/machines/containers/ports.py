"""The ports of a container on its host, and of a tunnel on this machine."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable

from yoloyard.common.errors import UsageError, UserError
from yoloyard.machines.containers.host import Host

# By their names in compose.yaml, with the ones that are tried first.
PORTS = {"YOLOYARD_JUPYTER_PORT": 8888, "YOLOYARD_SSH_PORT": 2222, "YOLOYARD_TENSORBOARD_PORT": 6006}


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
