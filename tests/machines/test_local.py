"""`up`, `down`, `shell` and `jupyter` on this machine, with a fake docker."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_machine import Machine
from yoloyard.cli.main import main

Command = Callable[..., tuple[int, str, str]]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfATest ada@laptop"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The test's machine, with a home, an empty state and a project folder that is the working directory."""
    made = Machine(tmp_path / "machine")
    for name in ("home", "home/.ssh", "line"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", str(made.programs))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("YOLOYARD_IMAGE", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path / "line")
    return made


@pytest.fixture
def cli(machine: Machine, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command; gives exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return run


def settings(machine: Machine) -> str:
    return (machine.state / ".env").read_text()


def token_in(text: str) -> str:
    found = re.search(r"token=([\w-]{20,})", text)
    assert found
    return found[1]


def test_up_on_a_machine_without_gpu(machine: Machine, cli: Command, tmp_path: Path) -> None:
    machine.with_docker()
    (tmp_path / "home/.ssh/id.pub").write_text(KEY + "\n")
    code, out, err = cli("up")
    assert code == 0, err
    assert "tag cpu: no NVIDIA GPU" in out
    assert "SSH keys: ~/.ssh/id.pub" in out
    assert re.search(r"http://127.0.0.1:\d+/lab\?token=", out)
    assert re.search(r"ssh -p \d+ yard@127.0.0.1", out)
    assert "yoloyard down" in out
    assert f"YOLOYARD_SSH_KEYS='{KEY}'" in settings(machine)
    assert f"YOLOYARD_WORKSPACE='{tmp_path / 'line'}'" in settings(machine)
    assert json.loads((machine.state / "service.yaml").read_text()) == {"services": {"yard": {}}}
    kept = list((tmp_path / "state/yoloyard").rglob(".env"))
    assert [file.stat().st_mode & 0o777 for file in kept] == [0o600]


def test_up_twice_finds_the_container_and_the_token(machine: Machine, cli: Command) -> None:
    machine.with_docker()
    first, second, jupyter = cli("up")[1], cli("up")[1], cli("jupyter")[1]
    assert token_in(first) == token_in(second) == token_in(jupyter)
    assert len([call for call in machine.calls("docker compose") if " up " in call]) == 1
    code, _, err = cli("up", "--shm-size", "4gb")
    assert code == 1
    assert "--shm-size" in err


def test_token_outlives_the_container(machine: Machine, cli: Command) -> None:
    machine.with_docker()
    first = cli("up", "--address", "0.0.0.0")[1]
    assert cli("down")[0] == 0
    assert token_in(cli("up")[1]) == token_in(first)
    assert "YOLOYARD_ADDRESS='127.0.0.1'" in settings(machine)  # the network only while it is asked for


def test_down_gives_time_to_save_and_keeps_volumes(machine: Machine, cli: Command) -> None:
    machine.with_docker()
    assert "no container" in cli("down")[1]
    cli("up")
    assert cli("down")[0] == 0
    assert machine.calls("docker compose")[-1].endswith("down --timeout 120")
    cli("up")
    assert cli("down", "--volumes")[0] == 0
    assert machine.calls("docker compose")[-1].endswith("down --timeout 120 --volumes")


def test_shell_hands_on_words_and_exit_status(machine: Machine, cli: Command) -> None:
    machine.with_docker()
    assert cli("shell")[0] == 1
    cli("up")
    assert cli("shell", "python", "mine.py", "--my_flag", "img=3")[0] == 7
    call = machine.calls("docker exec")[-1]
    assert call.endswith("c0ffee python mine.py --my_flag img=3")
    assert "--user yard" in call
    assert "--tty" not in call


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ([], {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}),
        (["--gpus", "1"], {"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}),
    ],
)
def test_gpus_are_handed_over(machine: Machine, cli: Command, words: list[str], devices: object) -> None:
    machine.with_docker(nvidia=True).with_gpus("580.65.06, 8.6, NVIDIA A10", "580.65.06, 8.6, NVIDIA A10")
    code, out, err = cli("up", *words)
    assert code == 0, err
    assert re.search(r"tag torch\S+: the newest for driver 580.65.06 and NVIDIA A10 \(8.6\)", out)
    service = json.loads((machine.state / "service.yaml").read_text())["services"]["yard"]
    assert service["deploy"]["resources"]["reservations"]["devices"] == [devices]


def test_gpu_without_the_toolkit(machine: Machine, cli: Command) -> None:
    machine.with_docker().with_gpus("580.65.06, 8.6, NVIDIA A10")
    code, _, err = cli("up")
    assert code == 1
    assert "nvidia-container-toolkit" in err
    assert "--gpus none" in err
    machine.fake("nvidia-ctk", "")
    assert "nvidia-ctk runtime configure" in cli("up")[2]
    assert cli("up", "--gpus", "none")[0] == 0


def test_a_driver_that_does_not_answer(machine: Machine, cli: Command) -> None:
    machine.with_docker().fake("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    code, _, err = cli("up")
    assert code == 1
    assert "NVIDIA-SMI has failed" in err


def test_no_such_gpu(machine: Machine, cli: Command) -> None:
    machine.with_docker(nvidia=True).with_gpus("580.65.06, 8.6, NVIDIA A10")
    assert cli("up", "--gpus", "0,3")[0] == 2
    assert cli("up", "--gpus", "some")[0] == 2


def test_a_port_that_is_taken(machine: Machine, cli: Command) -> None:
    machine.with_docker()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = cli("up", "--ssh-port", str(port))
    assert code == 1
    assert f"port {port}" in err
    assert "--ssh-port" in err
    assert not [call for call in machine.calls("docker compose") if " up " in call]


def test_the_image_is_missing(machine: Machine, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.with_docker(image=False)
    code, _, err = cli("up")
    assert code == 1
    assert "yoloyard image build cpu" in err
    monkeypatch.setenv("YOLOYARD_IMAGE", "registry.example/team/yoloyard")
    assert cli("up")[0] == 0
    assert machine.calls("docker pull") == ["docker pull registry.example/team/yoloyard:cpu"]


def test_a_container_that_stops_says_why(machine: Machine, cli: Command) -> None:
    machine.with_docker().next_container(running=False, exit_code=3)
    code, _, err = cli("up")
    assert code == 1
    assert "exit status 3" in err
    assert "the disk is full" in err


def test_no_engine_and_no_compose(machine: Machine, cli: Command) -> None:
    code, _, err = cli("up")
    assert code == 1
    assert "docker is not installed; podman is not installed" in err
    machine.fake("docker", '[ "$1" = version ]')
    assert "docker-compose-plugin" in cli("up")[2]
    machine.fake("docker", "echo 'permission denied while connecting' >&2; exit 1")
    assert "usermod" in cli("up")[2]
    assert cli("up", "--engine", "lxc")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--address", "nonsense"), "--address nonsense is no IPv4 address"),
        (("--address", "192.0.2.1"), "can't listen at 192.0.2.1"),
        (("--gpus", "nonsense"), "--gpus nonsense is neither all, none nor numbers"),
        (("--shm-size", "much"), "--shm-size much is no size"),
        (("--jupyter-port", "9000", "--ssh-port", "9000"), "two flags name the port 9000"),
    ],
)
def test_wrong_words_of_up(machine: Machine, cli: Command, words: tuple[str, ...], said: str) -> None:
    machine.with_docker()
    code, _, err = cli("up", *words)
    assert code in (1, 2)
    assert said in err
    assert not [call for call in machine.calls("docker compose") if " up " in call]


def test_settings_that_were_lost(
    machine: Machine, cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.with_docker()
    assert cli("up")[0] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    for command in ("up", "down"):
        code, out, err = cli(command)
        assert code == 1, (command, out)
        assert "what `up` chose for it is gone: docker stop" in err


def test_data_must_be_a_folder(machine: Machine, cli: Command, tmp_path: Path) -> None:
    machine.with_docker()
    assert cli("up", "--data", "nowhere")[0] == 1
    (tmp_path / "line/images").mkdir()
    assert cli("up", "--data", "images")[0] == 0
    assert f"YOLOYARD_DATA='{tmp_path / 'line/images'}'" in settings(machine)
