"""Hosts over ssh that lack something: each launch ends with one line that says what, where, and what to do."""

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from ssh_host import SYSTEM, Laptop, SshHost, has_namespaces, missing, ssh_host
from yoloyard.common.errors import UserError
from yoloyard.jobs.job_folder import JobFolder, probe
from yoloyard.jobs.setting_up import check_room, make_venv, send_package
from yoloyard.machines.containers.host import connect
from yoloyard.machines.image.versions import find_tag

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def bare() -> Iterator[SshHost]:
    with ssh_host() as made:
        yield made


@pytest.fixture
def laptop(bare: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    """A laptop that this process is for the time of the test."""
    made = Laptop(tmp_path / "laptop", bare)
    for name in ("HOME", "PATH"):
        monkeypatch.setenv(name, made.variables[name])
    return made


def refusal(host: SshHost) -> str:
    with pytest.raises(UserError) as error, connect(host.address) as there:
        probe(there)
    assert "\n" not in str(error.value)
    return str(error.value)


def without(host: SshHost, name: str) -> None:
    """Let sessions have all programs of the system but this one."""
    host.programs.mkdir(exist_ok=True)
    for folder in SYSTEM.split(":"):
        for path in Path(folder).iterdir():
            if not path.name.startswith(name) and not (host.programs / path.name).exists():
                (host.programs / path.name).symlink_to(path)


def test_host_keys_are_checked(bare: SshHost, laptop: Laptop) -> None:
    text = laptop.known_hosts.read_text()
    laptop.known_hosts.write_text(text.replace(bare.host_key, (bare.folder / "keys/user.pub").read_text()))
    assert "has another host key than it had before" in refusal(bare)
    laptop.known_hosts.write_text("")
    assert "is not known here yet: log in once by hand" in refusal(bare)


def test_a_login_shell_that_talks_is_told_to_be_silent(tmp_path: Path, laptop: Laptop, bare: SshHost) -> None:
    bare.program("sh", 'echo "Welcome, Ada!"\nexec /bin/sh "$@"')
    assert "prints 'Welcome, Ada!', which breaks rsync: let it do so in interactive shells alone" in refusal(bare)
    (bare.programs / "sh").unlink()


def test_tools_and_python_that_are_missing_are_named_with_their_packages(laptop: Laptop, tmp_path: Path) -> None:
    with ssh_host(path="") as host:
        laptop.known(host)
        without(host, "rsync")
        assert "rsync is missing on" in refusal(host)
        assert "sudo apt install rsync" in refusal(host)
        (host.programs / "rsync").symlink_to(str(shutil.which("rsync")))
        for python in host.programs.glob("python*"):
            python.unlink()
        with connect(host.address) as there:
            job, nowhere = probe(there, "job"), PurePosixPath("/nowhere")
            with pytest.raises(UserError, match=r"has no Python 3\.11 to 3\.13") as error:
                make_venv(job, nowhere, job.facts().get("python"), find_tag("cpu"), nowhere)
        assert "sudo apt install python3 python3-venv" in str(error.value)


@pytest.mark.skipif(not has_namespaces(), reason="no mounts of its own are allowed here")
def test_a_disk_that_is_full_is_said_before_or_as_it_happens(laptop: Laptop) -> None:
    with ssh_host(disk=2) as host:
        laptop.known(host)
        with connect(host.address) as there:
            job = probe(there, "job")
            with pytest.raises(
                UserError, match=r"has 2\.\d MB free .* make .*/\.yoloyard a link to a folder on a larger"
            ):
                check_room(job, 10**6)
            with pytest.raises(UserError, match=r"No space left on device .*make room there") as error:
                send_package(job, "1")
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("shell", ["fish", "tcsh"])
def test_any_login_shell_will_do(shell: str, laptop: Laptop) -> None:
    path = shutil.which(shell)
    if not path or not has_namespaces():
        pytest.skip(f"no {shell} here")
    with ssh_host(shell=path, home="it's my home") as host:
        laptop.known(host)
        with connect(host.address) as there:
            job = probe(there, "job")
            assert job.path == PurePosixPath(host.home, ".yoloyard/jobs/job")
            assert job.run("saying it", 'printf "%s\n" "$1"', "it's\na $HOME!") == "it's\na $HOME!\n"
            send_package(job, "1")
    assert isinstance(job, JobFolder)
