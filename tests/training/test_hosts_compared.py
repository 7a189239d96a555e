"""Hosts of a run that are not alike, do not reach each other or do not meet: each is one line."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from processes import join_team, run_together
from yoloyard.common.errors import SilentError, UsageError, UserError
from yoloyard.training.distributed import hosts
from yoloyard.training.distributed.hosts import Host, check_interface, differences, facts, nccl_line, own_address
from yoloyard.training.distributed.run_files import files_here
from yoloyard.training.setup.settings import check_shares, shares_of

A = Host("a", "10.0.0.1", 1, {"torch": "2.13.0", "yoloyard": "1 (source 12ab)", "--epochs": "100"})
B, C = (replace(A, name=name, address=f"10.0.0.{number}") for name, number in (("b", 2), ("c", 3)))


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this host at which something answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port of this host at which nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_hosts_that_are_alike_have_nothing_to_say() -> None:
    assert differences([A, B, C]) == ""
    assert (
        differences([A, replace(B, facts=B.facts | {"the file of --weights": "12ab"})]) == ""
    )  # rank 0 needs it alone


def test_what_differs_is_named_with_the_hosts_that_have_it() -> None:
    other = replace(C, facts=C.facts | {"torch": "2.8.0"})
    assert "torch is 2.13.0 on a (10.0.0.1), b (10.0.0.2) and 2.8.0 on c (10.0.0.3);" in differences([A, B, other])
    other = replace(B, facts={**B.facts, "--epochs": "200", "--lr0": "0.1"})
    said = differences([A, other])
    assert "--epochs is 100 on a (10.0.0.1) and 200 on b (10.0.0.2)" in said
    assert "--lr0 is not set on a (10.0.0.1) and 0.1 on b (10.0.0.2)" in said
    many = [replace(A, address=f"10.0.1.{number}", facts={"torch": "2.8.0"}) for number in range(9)]
    assert "10.0.1.3) and 5 more" in differences([A, *many])


def test_clocks_that_differ_are_said() -> None:
    assert hosts.clocks_line({0: 0.0, 1: -0.4}, {0: A, 1: B}) == ""
    assert "from that of a (10.0.0.1): c (10.0.0.3) by -20 s" in hosts.clocks_line({0: 0.0, 2: -20.1}, {0: A, 2: C})


def test_a_host_without_the_data_is_named(tmp_path: Path) -> None:
    said = differences([A, replace(B, problem=hosts.data_problem(str(tmp_path / "data.yaml")))])
    assert "on b (10.0.0.2): there is no file" in said
    (tmp_path / "data.yaml").write_text("train: here\nval: there\nnames: [part]\n")
    (tmp_path / "here").mkdir()
    assert f"val is {tmp_path}/there, which does not exist" in hosts.data_problem(str(tmp_path / "data.yaml"))
    (tmp_path / "there").mkdir()
    assert hosts.data_problem(str(tmp_path / "data.yaml")) == ""


def test_files_are_compared_by_their_content_and_what_a_host_has_of_its_own_is_not(tmp_path: Path) -> None:
    model, weights = tmp_path / "my_model.py", tmp_path / "w.pt"
    model.write_text("x = 1")
    weights.write_text("w")
    given = {"model": f"{model}:build", "weights": str(weights), "device": "0", "data": "a.yaml", "notify": "secret"}
    before = facts(given)
    assert set(before) == {"yoloyard", "torch", "the file of --model", "the file of --weights"}
    model.write_text("x = 2")
    changed = facts(given)
    assert [name for name in before if before[name] != changed[name]] == ["the file of --model"]
    assert set(facts({"model": "yolo11n", "weights": "s3://bucket/w"})) == {"yoloyard", "torch"}


def test_hosts_that_do_not_reach_each_other_are_named_with_their_addresses(port: int, free_port: int) -> None:
    there, closed = (Host("b", "127.0.0.1", number) for number in (port, free_port))
    assert hosts.unreached(A, [there]) == []
    (line,) = hosts.unreached(A, [there, closed])
    assert line.startswith("a (10.0.0.1) does not reach b (127.0.0.1), though both reach the rendezvous: ")
    assert "firewalls" in line


def test_a_network_interface_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_address("127.0.0.1", 1) != ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert own_address("127.0.0.1", 1) == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME=nosuch0, but .* has no such network inter.* \(it has"):
        own_address("127.0.0.1", 1)
    for asked, found in (("l", True), ("=lo", True), ("=l", False), ("^l", True), ("nosuch", False)):
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", asked)
        if found:
            assert ("lo" in check_interface("NCCL_SOCKET_IFNAME")) is not asked.startswith("^")
        else:
            with pytest.raises(UserError, match="no such network interface"):
                check_interface("NCCL_SOCKET_IFNAME")


def test_what_nccl_says_at_the_end_is_the_reason() -> None:
    error = RuntimeError(
        "NCCL error in: ProcessGroupNCCL.cpp:3384, unhandled system error, NCCL version 2.27.5\nncclSystemError: "
        "System call failed.\nLast error:\nBootstrap : no socket interface found"
    )
    line = str(nccl_line(error))
    assert "(Bootstrap : no socket interface found)" in line
    assert "NCCL_SOCKET_IFNAME" in line


@pytest.mark.parametrize(("local", "kind"), [("0", UserError), ("1", SilentError)])
def test_a_head_that_is_not_there_is_said_once_a_host(
    monkeypatch: pytest.MonkeyPatch, free_port: int, local: str, kind: type[UserError]
) -> None:
    environment = {"MASTER_PORT": str(free_port), "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": local}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for host, said in (("127.0.0.1", "nobody answers"), ("nosuch.invalid", "can't be resolved on")):
        monkeypatch.setenv("MASTER_ADDR", host)
        with pytest.raises(kind, match=said) as raised:
            hosts.meet(seconds=0.0)
        assert type(raised.value) is kind


def test_a_store_that_is_there_before_the_processes_answers_soon_or_a_firewall_is_between(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr(hosts, "STORE_SECONDS", 0.0)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"nobody answers .* at 127.0.0.1:{free_port} .* firewall"):
        hosts.meet()


def test_a_variable_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="not MASTER_ADDR, MASTER_PORT: start by torchrun"):
        hosts.meet()


def test_a_port_that_is_taken_is_said(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"port {port} of .* is taken by another program"):
        hosts.meet(seconds=1.0)


def test_a_batch_is_shared_by_each_number_of_hosts_that_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of("4", 8) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert shares_of("1:4", 2) == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert shares_of("2:3", 16) == 48
    check_shares("--batch 96", 96, "2:3", 16)
    with pytest.raises(UsageError, match=r"--batch 64 can't be shared evenly by each number of hosts in --nodes 2:3"):
        check_shares("--batch 64", 64, "2:3", 16)


def read_files(folder: str, other: str) -> tuple[list[tuple[str, bool]], list[str]]:
    """What each process reads of the files of rank 0's folder; a process with another rank has its own `other`.

    And what a cache holds once the first process of the host has come before the other one.
    """
    import torch

    team = join_team(torch.device("cpu"))
    own, found = Path(folder if team.is_rank_0 else other), []
    for _ in range(2):
        with files_here(team, own) as place:
            found.append(((place / "a.txt").read_text(), place == own))
        if not team.is_rank_0:
            own.mkdir(exist_ok=True)
            (own / "a.txt").write_text("from rank 0")
    cache = Path(folder, "cache")

    def use_cache() -> list[str]:
        with cache.open("a") as file:
            file.write(f"{team.rank}\n")
        return cache.read_text().split()

    seen = team.first_of_host_first(use_cache)
    team.leave()
    assert place.exists() == (place == own)
    return found, seen


@pytest.mark.slow
def test_files_of_rank_0_are_read_where_they_are_or_fetched_and_caches_made_once_a_host(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from rank 0")
    (first, before), (second, after) = run_together(2, read_files, str(tmp_path), str(tmp_path / "elsewhere"))
    assert (before, after) == (["0"], ["0", "1"])
    assert first == [("from rank 0", True)] * 2
    assert second == [("from rank 0", False), ("from rank 0", True)]  # the second time it has them itself
