"""Hosts that meet and do not reach each other, as behind a firewall that lets the rendezvous through alone."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import TINY
from host_network import Host, Network, ip
from yoloyard.demo.write import write_demo

pytestmark = pytest.mark.slow
PORT = "29400"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts with the same data."""
    try:
        network = Network(f"yr{os.getpid()}", os.getpid() % 250)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces: {error}")
    write_demo(tmp_path / "line", seed=3, train=14, val=6, size=64)
    yield [network.add(tmp_path / name) for name in ("first", "second")]
    network.remove()


def close_all_ports_but(port: str, host: Host, other: Host) -> None:
    """What `host` sends to `other` from another port is lost on the way."""
    for number, rule in ((10, ["sport", port, "lookup", "main"]), (20, ["blackhole"])):
        ip("-n", host.namespace, "rule", "add", "to", other.address, "ipproto", "tcp", *rule, "pref", str(number))


def test_a_firewall_between_the_processes_is_named_with_both_addresses(two: list[Host]) -> None:
    close_all_ports_but(PORT, *two)
    for rank, host in enumerate(two):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": two[0].address, "MASTER_PORT": PORT}
        host.start("train", "--data", "../line/data.yaml", *TINY, **variables)
    assert [host.end() for host in two] == [2, 2]
    line = two[0].wait_for("though both reach the rendezvous")
    assert all(f"worker ({host.address})" in line for host in two)
    assert [line for line in two[1].lines if line.startswith("yoloyard:")] == []


def test_a_host_that_does_not_reach_rank_0_leaves_and_the_other_trains(two: list[Host]) -> None:
    close_all_ports_but(PORT, *two)
    for host in two:
        place = ["--nodes", "1:2", "--rendezvous", f"{two[0].address}:{PORT}"]
        host.start("train", "--data", "../line/data.yaml", *TINY, *place)
    assert two[1].end() == 1
    line = two[1].wait_for("though both reach the rendezvous")
    assert all(f"worker ({host.address})" in line for host in two)
    assert two[0].end() == 0
