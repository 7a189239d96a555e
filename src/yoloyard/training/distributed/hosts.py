"""Before the processes of several hosts exchange anything: are the hosts alike, and do they reach each other?

All of it goes through the store, which every process reaches, or it would not be here.
"""

import datetime
import ipaddress
import logging
import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from yoloyard.common.cores import map_in_threads
from yoloyard.common.digests import file_sha256, source_sha256
from yoloyard.common.errors import SilentError, UsageError, UserError
from yoloyard.common.log import ONCE
from yoloyard.common.user_file import is_custom
from yoloyard.common.versions import versions
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.training.distributed.watch import LOST_CODE, START_SECONDS, Watch, starts_again

log = logging.getLogger(__name__)

SILENT_SECONDS = 10.0  # of waiting for another host, after which it is said
STORE_SECONDS = 20.0  # that the first answer of a store which is there may take
REACH_SECONDS = 10.0  # that a connection from host to host may take
CLOCK_SECONDS = 3.0  # by which clocks may differ; a host counts as gone after 15 s by the clocks of the others
MAX_HOSTS_NAMED = 4  # in a line, for each thing that differs
# Settings that may differ: what a host has of its own, and files, of which the content is compared.
OF_A_HOST = {"device", "processes", "data", "project", "notify", "rendezvous"}
OF_FILES = ("model", "weights", "transform")


@dataclass(frozen=True)
class Host:
    """What the first process of a host shows the others."""

    name: str
    address: str = ""  # by which others reach it
    port: int = 0  # where a connection can be tried
    facts: dict[str, str] = field(default_factory=dict)  # what must be the same on all, by what it is called
    problem: str = ""  # with its data

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


def meet(seconds: float = START_SECONDS) -> tuple[dist.Store, int, int]:
    """The store of a run's processes, the rank of this one, and how many there are; as torchrun's variables say.

    Raises UserError in one process of a host if they do not meet within `seconds`, SilentError in its others;
    UsageError if a variable is missing.
    """
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UsageError(f"WORLD_SIZE is set, but not {', '.join(missing)}: start by torchrun, or unset WORLD_SIZE")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_there = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # before any process
    speaks, serves = os.environ.get("LOCAL_RANK", "0") == "0", os.environ.get("RANK") == "0" and not is_there
    patience = STORE_SECONDS if is_there else seconds
    problem = "" if serves else wait_for(host, port, patience, "MASTER_ADDR", "rank 0", speaks)
    try:
        if not problem:
            return next(iter(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=seconds))))
    except dist.DistError as error:
        text = str(error).partition("\n")[0]
        problem = f"not all processes of the run came to {host}:{port} within {seconds:.0f} s: {text}"
        if "EADDRINUSE" in text:
            problem = f"port {port} of {platform.node()} is taken by another program: choose another MASTER_PORT"
    apart = UserError(problem) if speaks else SilentError(problem)
    apart.exit_code = LOST_CODE if starts_again() else 1
    raise apart


def wait_for(host: str, port: int, seconds: float, named_by: str, who: str, speaks: bool = True) -> str:
    """Wait until something answers at a port; returns why it does not, or nothing.

    `named_by`: what the user or the cluster names the host by; `who`: what should answer there; `speaks`: a line is
    logged if it takes long.
    """
    start, problem = time.monotonic(), ""
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return ""
        except socket.gaierror as error:  # in a cluster the name may come later
            problem = f"the name {host} can't be resolved on {platform.node()} ({error.strerror}): see {named_by}"
        except OSError as error:
            own, reason = f"{platform.node()} ({own_address(host, port)})", error.strerror or error
            problem = f"nobody answers {own} at {host}:{port} ({reason}): see whether {who} runs there, and whether a "
            problem += "firewall is between; hosts must reach all TCP ports of each other"
        if time.monotonic() - start > seconds:
            return problem
        if speaks and time.monotonic() - start > SILENT_SECONDS:
            log.info(f"waiting for the other hosts: {problem}", extra=ONCE)
        time.sleep(min(1.0, seconds))


def compare_hosts(watch: Watch, overrides: Mapping[str, Any]) -> None:
    """Raise UsageError on rank 0, and SilentError elsewhere, if the hosts of a run are not alike or out of reach.

    Each process calls this with its user's `overrides`. Where there is one host, nothing is compared.
    """
    if os.environ.get("LOCAL_WORLD_SIZE", "") == str(watch.size) or watch.size == 1:
        return
    address = own_address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    both: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    with socket.create_server(("", 0), backlog=4096, **both) as server:
        own = Host(platform.node(), address, server.getsockname()[1])
        if watch.is_first_of_host:
            own = Host(own.name, address, own.port, facts(overrides), data_problem(overrides.get("data")))
        shown = watch.exchange("host", asdict(own) if watch.is_first_of_host else None)
        hosts = {rank: Host(**each) for rank, each in enumerate(shown) if each is not None}
        if len(hosts) > 1:
            watch.show(host=str(own))
            gloo_interface(address)
            _agree(watch, differences(list(hosts.values())))
            clocks = watch.exchange("clock", time.time())  # all come from an exchange, at the same moment
            if watch.rank == 0 and (line := clocks_line({rank: clocks[rank] - clocks[0] for rank in hosts}, hosts)):
                log.warning(line)
            others = [other for rank, other in hosts.items() if rank != watch.rank]
            lost = unreached(own, others) if watch.is_first_of_host else []
            _agree(watch, next((each for found in watch.exchange("unreached", lost) for each in found), ""))


def clocks_line(ahead: Mapping[int, float], hosts: Mapping[int, Host]) -> str:
    """What is said of hosts whose clocks are so many seconds `ahead` of that of rank 0; empty if all agree."""
    said = [f"{hosts[rank]} by {seconds:+.0f} s" for rank, seconds in ahead.items() if abs(seconds) > CLOCK_SECONDS]
    if not said:
        return ""
    named = ", ".join(said[:MAX_HOSTS_NAMED])
    return f"clocks differ from that of {hosts[0]}: {named}; with --nodes 1:4 hosts would seem lost: set them (NTP)"


def facts(overrides: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same on all hosts, by what it is called in a message."""
    found = {"yoloyard": f"{versions()['yoloyard']} (source {source_sha256()[:12]})", "torch": str(torch.__version__)}
    for name, value in overrides.items():
        if name in OF_FILES:
            path = Path(os.path.expanduser(str(value).rpartition(":")[0] if is_custom(str(value)) else str(value)))
            if path.is_file():  # only rank 0 needs it, and a name or an address is no file
                found[f"the file of --{name}"] = file_sha256(path)[:12]
        elif name not in OF_A_HOST:
            found[f"--{name.replace('_', '-')}"] = str(value)
    return found


def data_problem(data: str | None) -> str:
    """Why this host can't read the user's data file, or what it names is not there; empty if all is well."""
    try:
        splits = read_data_yaml(Path(data)).splits if data else {}
    except UserError as error:
        return str(error)
    gone = [(split, place) for split in ("train", "val") for place in splits.get(split, ()) if not place.path.exists()]
    return "".join(f"{data}: {split} is {place.path}, which does not exist" for split, place in gone[:1])


def differences(hosts: Sequence[Host]) -> str:
    """What is not the same on all hosts, in a line that names them; empty if they are alike."""
    lacking = [host for host in hosts if host.problem]
    if len(lacking) == len(hosts):  # rank 0 says it
        return ""
    said = [f"on {host}: {host.problem}" for host in lacking]
    names = dict.fromkeys(name for host in hosts for name in host.facts)
    for name in names:
        if name.startswith("the file of") and not all(name in host.facts for host in hosts):
            continue
        groups: dict[str, list[Host]] = {}
        for host in hosts:
            groups.setdefault(host.facts.get(name, "not set"), []).append(host)
        if len(groups) > 1:
            said.append(f"{name} is " + " and ".join(f"{value} on {_named(group)}" for value, group in groups.items()))
    if not said:
        return ""
    return f"the hosts of the run are not alike: {'; '.join(said)}; start the same command with the same files on each"


def own_address(head: str, port: int) -> str:
    """The address of this host that others reach it by: on the way to the head, or of GLOO_SOCKET_IFNAME.

    Raises UserError if there is no such network interface.
    """
    addresses = interface_addresses()
    if named := os.environ.get("GLOO_SOCKET_IFNAME"):
        if (first := named.partition(",")[0]) not in addresses:
            raise UserError(
                f"GLOO_SOCKET_IFNAME={named}, but {platform.node()} has no such network interface (it has "
                f"{', '.join(addresses)}); set it to the one on which the hosts reach each other"
            )
        return next(iter(addresses[first]), "")
    address = "127.0.0.1"
    with suppress(OSError):  # where there is no way there
        family, kind, protocol, _, target = socket.getaddrinfo(head, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # sends nothing
            address = str(probe.getsockname()[0])
    if _is_own_alone(address):  # as the host's own name often means
        outside = [each for of_it in addresses.values() for each in of_it if not _is_own_alone(each)]
        address = next(iter(outside), address)
    return address


def interface_addresses() -> dict[str, list[str]]:
    """The addresses of each network interface that is up, IPv4 first, without those of one link alone."""
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    found = {name: psutil.net_if_addrs().get(name, []) for name in up}
    return {
        name: [each.address for each in of_it if each.family == socket.AF_INET]
        + [each.address for each in of_it if each.family == socket.AF_INET6 and "%" not in each.address]
        for name, of_it in found.items()
    }


def gloo_interface(address: str) -> None:
    """Let gloo use the network of `address`, where the user names none: it would take what the host's name means.

    That is 127.0.1.1 on many systems, where no other host finds it.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        names = [name for name, addresses in interface_addresses().items() if address in addresses]
        os.environ |= {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def unreached(own: Host, others: Sequence[Host], seconds: float = REACH_SECONDS) -> list[str]:
    """What is said of the hosts that can't be reached from here: a line for each."""

    def problem(other: Host) -> str:
        try:
            socket.create_connection((other.address, other.port), timeout=seconds).close()
        except OSError as error:
            reason = error.strerror or str(error)
            return (
                f"{own} does not reach {other}, though both reach the rendezvous: {reason}, port {other.port}; let the "
                "hosts reach all TCP ports of each other (firewalls, security groups), or name their common network by "
                "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            )
        return ""

    return [line for line in map_in_threads(problem, others, 64, at_once=1) if line]


def nccl_line(error: Exception) -> UserError:
    """The message where NCCL does not connect the GPUs; its own error has the cause at its end."""
    reason = " ".join(str(error).rpartition("Last error:")[2].split())
    return UserError(
        f"NCCL can't connect the GPUs of the run, on {platform.node()} ({reason:.300}); name the network on which the "
        "hosts reach each other by NCCL_SOCKET_IFNAME, or look for what else is wrong with NCCL_DEBUG=INFO"
    )


def _is_own_alone(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _named(hosts: Sequence[Host]) -> str:
    more = len(hosts) - MAX_HOSTS_NAMED
    return ", ".join(map(str, hosts[:MAX_HOSTS_NAMED])) + (f" and {more} more" if more > 0 else "")


def _agree(watch: Watch, problem: str) -> None:
    """End all processes if rank 0 has found a problem; it says it."""
    if problem:
        raise UsageError(problem) if watch.rank == 0 else SilentError(problem, UsageError.exit_code)
