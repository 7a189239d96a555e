"""`--on ssh://user@host`: a real sshd of the test's own on this machine, with a fake docker behind it."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fake_machine import Machine
from yoloyard.common.errors import UsageError, UserError
from yoloyard.machines.containers.copying import copy_folder, files_of
from yoloyard.machines.containers.host import connect, parse_host

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
HERE_SSH = shutil.which("ssh")

needs_sshd = pytest.mark.skipif(not (SSHD and HERE_SSH), reason="no ssh server here (package openssh-server)")


@dataclass
class Remote:
    """A host behind sshd: its address, its machine of fakes, and the folder with keys."""

    address: str
    machine: Machine
    keys: Path
    home: Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    """Until something listens on `port`."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """A running sshd, and an `ssh` on the PATH that reads the test's own keys and known hosts."""
    keys, home, port = tmp_path / "keys", tmp_path / "there", free_port()
    keys.mkdir(mode=0o700)
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    shutil.copy(keys / "user.pub", keys / "authorized_keys")
    (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {(keys / 'host.pub').read_text()}")
    machine = Machine(tmp_path / "machine").with_docker()
    (keys / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/authorized_keys\n"
        f"StrictModes no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n"
        f"SetEnv PATH={machine.programs} HOME={home} XDG_STATE_HOME={home}/state\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    for name in ("git", "sh"):
        (here / name).symlink_to(str(shutil.which(name)))
    (here / "ssh").write_text(
        f"#!/bin/sh\nexec {HERE_SSH} -F none -i {keys}/user -o IdentitiesOnly=yes "
        f'-o UserKnownHostsFile={keys}/known_hosts "$@"\n'
    )
    (here / "ssh").chmod(0o755)
    project = tmp_path / "line"
    project.mkdir()
    (project / "data.yaml").write_text("names: [scratch]\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", str(here))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    log = (keys / "log").open("wb")
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(keys / "sshd_config")], stderr=log)
    wait_for(port)
    yield Remote(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", machine, keys, home)
    server.terminate()
    server.wait()
    log.close()


def yoloyard(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "yoloyard", *words], capture_output=True, text=True, check=False)


@needs_sshd
def test_up_shell_and_down_on_another_machine(remote: Remote) -> None:
    done = yoloyard("up", "--on", remote.address)
    assert done.returncode == 0, done.stderr
    assert "copying 1 files" in done.stdout
    assert re.search(r"ssh -p \d+ -N -L \d+:127.0.0.1:\d+ -L \d+:127.0.0.1:\d+ \w+@127.0.0.1", done.stdout)
    assert (remote.home / "yoloyard/line/data.yaml").read_text() == "names: [scratch]\n"
    assert f"YOLOYARD_WORKSPACE='{remote.home}/yoloyard/line'" in (remote.machine.state / ".env").read_text()
    assert "running already" in yoloyard("up", "--on", remote.address).stdout
    done = yoloyard("shell", "--on", remote.address, "python", "it's mine.py")
    assert done.returncode == 7
    assert remote.machine.calls("docker exec")[-1].endswith("c0ffee python it's mine.py")
    done = yoloyard("down", "--on", remote.address)
    assert done.returncode == 0, done.stderr
    assert "rsync -a" in done.stdout


@needs_sshd
def test_an_image_is_sent_there(remote: Remote, tmp_path: Path) -> None:
    (remote.machine.state / "image").unlink()
    done = yoloyard("up", "--on", remote.address)
    assert done.returncode == 1
    assert "yoloyard image build cpu" in done.stderr
    here = Machine(tmp_path / "laptop").with_docker()
    shutil.copy(here.programs / "docker", tmp_path / "here/docker")
    (tmp_path / "here/cat").symlink_to(str(here.programs / "cat"))
    done = yoloyard("up", "--on", remote.address)
    assert done.returncode == 0, done.stderr
    assert (remote.machine.state / "image").read_text() == "layers of an image\n"


@needs_sshd
def test_jupyter_keeps_a_tunnel_until_ctrl_c(remote: Remote, tmp_path: Path) -> None:
    port = free_port()
    ports = ["--jupyter-port", str(port), "--tensorboard-port", str(free_port())]
    assert yoloyard("up", "--on", remote.address, *ports).returncode == 0
    (tmp_path / "page").mkdir()
    (tmp_path / "page/lab").write_text("the notebook")
    served = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(tmp_path / "page")],
        stderr=subprocess.DEVNULL,
    )
    wait_for(port)  # so that the tunnel takes another one on this side
    opened = subprocess.Popen(
        [sys.executable, "-m", "yoloyard", "jupyter", "--on", remote.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert opened.stdout is not None
        line = opened.stdout.readline()
        address = line.split()[-1]
        assert "lab?token=" in address, line + opened.communicate()[1]
        assert urllib.request.urlopen(address, timeout=20).read() == b"the notebook"
        opened.send_signal(signal.SIGINT)
        assert opened.wait(10) == 130
    finally:
        for process in (served, opened):
            process.kill()
            process.wait()


@needs_sshd
def test_what_keeps_us_out_is_said(remote: Remote) -> None:
    def refusal(address: str) -> str:
        with pytest.raises(UserError) as error, connect(address):
            pass
        return str(error.value)

    assert "can't be reached" in refusal(f"ssh://ada@127.0.0.1:{free_port()}")
    known = remote.keys / "known_hosts"
    text = known.read_text()
    known.write_text("")
    assert "not known here yet" in refusal(remote.address)
    known.write_text(text.replace((remote.keys / "host.pub").read_text(), (remote.keys / "user.pub").read_text()))
    assert "another host key" in refusal(remote.address)
    known.write_text(text)
    (remote.keys / "authorized_keys").write_text("")
    assert "refuses your key" in refusal(remote.address)


@pytest.mark.parametrize("address", ["ada@gpu1", "http://gpu1", "ssh://", "ssh://-oProxyCommand=x", "ssh://a@b:port"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UsageError):
        parse_host(address)


def test_git_says_what_belongs_to_a_project(tmp_path: Path) -> None:
    for name in ("data.yaml", "huge.bin", ".gitignore"):
        (tmp_path / name).write_text("huge.bin\n")
    assert [str(file) for file in files_of(tmp_path)] == [".gitignore", "data.yaml", "huge.bin"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert [str(file) for file in files_of(tmp_path)] == [".gitignore", "data.yaml"]


def test_a_gigabyte_is_not_copied_silently(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with (tmp_path / "images/film.mp4").open("wb") as film:
        film.truncate(2 * 10**9)
    with pytest.raises(UserError, match=r"images \(2.00 GB\).*--yes"):
        copy_folder(tmp_path, parse_host("ssh://gpu1"), tmp_path, False)  # type: ignore[arg-type]
