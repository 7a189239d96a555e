"""The ports of a container on its host, and of a tunnel on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket

from yoloyard.common.errors import UsageError, UserError
from yoloyard.machines.containers.host import Host

# By their names in compose.yaml, with the ones that are tried first.
PORTS = {"YOLOYARD_JUPYTER_PORT": 8888, "YOLOYARD_SSH_PORT": 2222, "YOLOYARD_TENSORBOARD_PORT": 6006}


def choose_ports(host: Host, address: str, before: dict[str, str], asked: dict[str, str]) -> dict[str, str]:
    """A free port of `host` for each service: the one asked for, else the last one, else the next that is free.

    Raises UserError if one that was asked for is taken, UsageError for what is no address or no port.
    """
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise UsageError(f"--address {address} is no IPv4 address, such as 127.0.0.1 or 0.0.0.0") from None
    taken, chosen = _Taken(host, address), dict[str, str]()
    for name, default in PORTS.items():
        if name in asked:
            flag = f"--{name.removeprefix('YOLOYARD_').lower().replace('_', '-')}"
            port = int(asked[name])
            if not 0 < port < 65536:
                raise UsageError(f"{flag} {port} is no port; they go from 1 to 65535")
            if asked[name] in chosen.values():
                raise UsageError(f"two flags name the port {port}")
            if taken(port):
                raise UserError(f"port {port} is taken on {host}: name another with {flag}, or leave it out")
        else:
            port = int(before.get(name, default))
            while taken(port) or str(port) in chosen.values() or str(port) in asked.values():
                port += 1
        chosen[name] = str(port)
    return chosen


def tunnel_ports(settings: dict[str, str]) -> dict[str, int]:
    """A free port of this machine for each one on the host, the same number where that is free."""
    taken, chosen = _Taken(Host(), "127.0.0.1"), dict[str, int]()
    for name in PORTS:
        port = int(settings[name])
        while taken(port) or port in chosen.values():
            port += 1
        chosen[name] = port
    return chosen


def listens(port: int) -> bool:
    """Whether something on this machine answers on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _Taken:
    """Whether something listens on a port of a machine."""

    def __init__(self, host: Host, address: str) -> None:
        self._address, self._remote = address, host.is_remote
        text = host.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout if host.is_remote else ""
        rows = [line.split() for line in text.splitlines()]
        # "0100007F:22B8" is an address and a port, in hexadecimal; the state 0A is "listens"
        self._listening = {int(row[1].rsplit(":", 1)[1], 16) for row in rows if len(row) > 3 and row[3] == "0A"}

    def __call__(self, port: int) -> bool:
        if self._remote:
            return port in self._listening
        with socket.socket(socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._address, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise UserError(f"can't listen at {self._address}: {error.strerror}") from error
                return True
        return False
