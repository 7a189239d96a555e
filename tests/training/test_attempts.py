"""What the attempts of a launch know of each other: one id, one run folder, one place to meet."""

import datetime
import json
import os
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch.distributed as dist

from yoloyard.cli.main import main
from yoloyard.common.errors import UserError
from yoloyard.common.files import RUN_MARK
from yoloyard.training.distributed.agent import Agent
from yoloyard.training.distributed.cluster import LAUNCH
from yoloyard.training.distributed.store import agreed_launch, is_free_here, parts, serve
from yoloyard.training.run import RunHere, begun_folder


def test_hosts_agree_on_an_id_until_the_run_has_ended() -> None:
    first = serve("127.0.0.1", 0)
    limit = datetime.timedelta(seconds=10)
    second = dist.TCPStore("127.0.0.1", first.port, is_master=False, timeout=limit)
    name = agreed_launch(first, "yoloyard")
    assert agreed_launch(second, "yoloyard") == name
    assert agreed_launch(second, "slurm-7.0") != name
    dist.PrefixStore(name, first).set("ended", "{}")
    following = agreed_launch(second, "yoloyard")
    assert following != name
    assert agreed_launch(first, "yoloyard") == following


def test_an_attempt_goes_on_in_the_folder_of_its_launch_and_in_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LAUNCH, raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, launch in (("other", "17"), ("line", "18"), ("plain", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / RUN_MARK).write_text(launch)
    overrides = {"project": str(tmp_path)}
    assert begun_folder(overrides) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's own default names nothing
    assert begun_folder(overrides) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "18")
    assert begun_folder(overrides) == tmp_path / "line"
    assert RunHere(overrides, None).saved() == 0
    (tmp_path / "line" / "report.html").touch()  # torchrun's ids are often used twice: that run is over
    assert begun_folder(overrides) is None
    monkeypatch.setenv(LAUNCH, "18")
    assert begun_folder(overrides) == tmp_path / "line"
    monkeypatch.setenv(LAUNCH, "19")
    assert begun_folder(overrides) is None
    assert RunHere(overrides, None).saved() == -1
    assert not RunHere(overrides, None).fetch()


def test_who_serves_the_store_and_where_is_told_from_its_address() -> None:
    assert parts("[::1]:29400") == ("::1", 29400)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not is_free_here("127.0.0.1", taken.getsockname()[1])
    assert not is_free_here("192.0.2.1", 29400)  # an address of nobody


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["rendezvous", "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("yoloyard: port ")
    assert said.count("\n") == 1
    assert "say another --port" in said
    os.environ.pop("TORCH_CPP_LOG_LEVEL", None)


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_nobody_could_name_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rendezvous", f"--port={port}"])
    assert ended.value.code == 2
    assert "say a number from 1 to 65535" in capsys.readouterr().err
    os.environ.pop("TORCH_CPP_LOG_LEVEL", None)


@dataclass
class NothingHere:
    """A host without the run and without copies of it."""

    overrides: dict[str, object]

    def saved(self) -> int:
        return -1

    def fetch(self) -> bool:
        return False


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_host_that_takes_over_begins_a_run_only_if_no_other_host_has_begun_it(is_begun: bool) -> None:
    former, here = ({"id": name, "name": name, "saved": -1} for name in ("former", "here"))
    shared = dist.HashStore()
    shared.set("rank 0", json.dumps(former))
    if is_begun:
        shared.set("begun", "")
    agent = object.__new__(Agent)
    agent.name, agent._id, agent._saved, agent._shared, agent._here = "here", "here", -1, shared, NothingHere({})
    agent.hosts = Mock(**{"others.return_value": 0})
    expected = pytest.raises(UserError, match="the run was on former") if is_begun else nullcontext()
    with expected:
        agent._take_over([here])
    assert shared.check(["ended"]) is is_begun
