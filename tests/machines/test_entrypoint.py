"""What a container's entry point reads, writes and stops, without root and without a container."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yoloyard.docker import entrypoint
from yoloyard.docker.entrypoint import Process, WrongError, read_settings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "yoloyard" / "docker" / "entrypoint.py"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKGzWnEzHDZYPnFHDuq4VSuFuHRYRJbGH9ijOzTYHwKM somebody"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("YOLOYARD_JUPYTER_PORT", "99999"),
        ("YOLOYARD_SSH_PORT", "0"),
        ("YOLOYARD_UID", "abc"),
        ("YOLOYARD_GID", "-1"),
        ("YOLOYARD_JUPYTER_TOKEN", ""),
        ("YOLOYARD_JUPYTER_TOKEN", " "),
        ("YOLOYARD_JUPYTER_PASSWORD_HASH", ""),
        ("YOLOYARD_JUPYTER_PASSWORD_HASH", "secret"),
        ("YOLOYARD_JUPYTER", "yes"),
        ("YOLOYARD_BIND", "0.0.0.0 --insecure"),
        ("YOLOYARD_STOP_SECONDS", "soon"),
    ],
)
def test_a_bad_value_is_named(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(WrongError, match=name):
        read_settings({name: value}, root=True, workspace=tmp_path)


def test_a_bad_value_is_one_line_and_status_2() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT], env={"YOLOYARD_SSH_PORT": "99999"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "yoloyard: YOLOYARD_SSH_PORT is '99999': it must be a whole number from 1 to 65535\n"


def test_two_services_do_not_share_a_port(tmp_path: Path) -> None:
    both = {"YOLOYARD_JUPYTER": "1", "YOLOYARD_TENSORBOARD": "1", "YOLOYARD_TENSORBOARD_PORT": "8888"}
    with pytest.raises(WrongError, match="another service"):
        read_settings(both, root=True, workspace=tmp_path)


def test_a_token_is_made_where_none_is_given_and_never_twice_the_same(tmp_path: Path) -> None:
    first, second = (read_settings({"YOLOYARD_JUPYTER": "1"}, True, tmp_path) for _ in range(2))
    assert len(first.token) >= 32
    assert first.token != second.token
    assert read_settings({"YOLOYARD_JUPYTER": "1", "YOLOYARD_JUPYTER_TOKEN": "mine"}, True, tmp_path).token == "mine"


def test_with_a_password_the_token_is_not_printed(tmp_path: Path) -> None:
    words = {"YOLOYARD_JUPYTER": "1", "YOLOYARD_JUPYTER_PASSWORD_HASH": "argon2:$argon2id$v=19$abc"}
    settings = read_settings(words, True, tmp_path)
    assert not settings.token_made
    config = json.loads(entrypoint.jupyter_config(settings))
    assert len(config["IdentityProvider"]["token"]) >= 32
    assert config["PasswordIdentityProvider"]["hashed_password"] == "argon2:$argon2id$v=19$abc"


def test_files_belong_to_the_owner_of_the_project_folder(tmp_path: Path) -> None:
    owner = tmp_path.stat().st_uid
    settings = read_settings({}, True, tmp_path)
    if owner == 0 and not entrypoint.is_rootless():
        assert settings.uid == 1000
        assert "belongs to root" in settings.notes[0]
    else:
        assert settings.uid == owner
    asked = read_settings({"YOLOYARD_UID": "1234"}, True, tmp_path)
    assert (asked.uid, asked.gid) == (1234, 1234)
    assert read_settings({"YOLOYARD_UID": "0"}, True, tmp_path).uid == 0


def test_ssh_is_off_without_keys_and_without_root(tmp_path: Path) -> None:
    without = read_settings({"YOLOYARD_SSH": "1"}, True, tmp_path)
    assert (without.on, "no keys" in " ".join(without.notes)) == ((), True)
    other = read_settings({"YOLOYARD_SSH": "1", "YOLOYARD_SSH_KEYS": KEY}, False, tmp_path)
    assert (other.on, "root" in " ".join(other.notes)) == ((), True)
    assert read_settings({"YOLOYARD_SSH": "1", "YOLOYARD_SSH_KEYS": KEY}, True, tmp_path).on == ("SSH",)


def test_a_session_gets_the_environment_but_no_secret(tmp_path: Path) -> None:
    environment = {
        "YOLOYARD_SSH": "1",
        "YOLOYARD_SSH_KEYS": KEY,
        "YOLOYARD_JUPYTER_TOKEN": "hidden",
        "PATH": "/opt/yoloyard/bin:/usr/bin",
        "CUDA_HOME": "/opt/cuda",
        "WORDS": 'two "quoted" words',
        "LINES": "a\nPermitRootLogin yes",
    }
    text = entrypoint.sshd_config(read_settings(environment, True, tmp_path), environment, tmp_path)
    assert '"PATH=/opt/yoloyard/bin:/usr/bin"' in text
    assert '"CUDA_HOME=/opt/cuda"' in text
    assert 'two \\"quoted\\" words' in text
    assert "hidden" not in text
    assert "PermitRootLogin yes" not in text


@pytest.mark.skipif(
    not shutil.which("sshd", path="/usr/sbin:/usr/bin") or not Path("/run/sshd").is_dir(),
    reason="no sshd here, or the folder that it wants is not made yet",
)
def test_sshd_takes_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoint, "KEYS", tmp_path)
    key = tmp_path / "ssh_host_ed25519_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    environment = {"YOLOYARD_SSH_KEYS": KEY, "WORDS": 'two "quoted" words'}
    config = tmp_path / "sshd_config"
    config.write_text(entrypoint.sshd_config(read_settings(environment, True, tmp_path), environment, tmp_path))
    program = str(shutil.which("sshd", path="/usr/sbin:/usr/bin"))
    done = subprocess.run([program, "-T", "-f", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin no",
                 "permitemptypasswords no", "allowusers yard", "authenticationmethods publickey"):  # fmt: skip
        assert line in done.stdout.splitlines()


def test_only_the_topmost_process_that_saves_is_signalled() -> None:
    table = {
        1: Process(0, "tini", True),
        2: Process(1, "python3", False),
        3: Process(2, "jupyter-lab", True),
        4: Process(3, "python", False),  # an idle kernel: nothing to save
        5: Process(4, "yoloyard", True),  # a training from a cell
        6: Process(5, "yoloyard", True),  # its loader's worker: the training's own business
        7: Process(2, "sshd", True),
        8: Process(1, "tmux: server", True),
        9: Process(8, "bash", True),
        10: Process(9, "yoloyard", True),
        11: Process(2, "tensorboard", True),
        12: Process(11, "server", True),
        13: Process(0, "yoloyard", True),  # started by exec
    }
    assert sorted(entrypoint.busy(table, [1, 13], set())) == [5, 10, 13]
    table[5].saves = False  # a second signal would now end it at once; it still saves, and ends its workers itself
    assert sorted(entrypoint.busy(table, [1, 13], {5, 10, 13})) == [5, 10, 13]


TRAINING = """
import signal, sys, time
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    print("asked", flush=True); time.sleep(0.5); print("saved", flush=True); sys.exit(7)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True: time.sleep(0.1)
"""


@pytest.mark.parametrize("in_a_shell", [False, True])
def test_a_command_is_asked_once_and_waited_for(in_a_shell: bool, tmp_path: Path) -> None:
    # Not as root, who would make a user here; the script is the same from there on.
    program = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import entrypoint as e, os, signal; "
    program += (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP}); "
    )
    program += "c = e.start(sys.argv[1:], dict(os.environ), None); "
    program += "sys.exit(e.run(None, c, e.read_settings({}, False)))"
    command = [sys.executable, "-c", TRAINING]
    if in_a_shell:
        command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    child = subprocess.Popen([sys.executable, "-c", program, *command], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=30)[0] == "asked\nsaved\n"
    assert child.returncode == 7


def test_the_dockerfile_is_clean() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not program:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, SCRIPT.with_name("Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_locks_agree_with_the_tested_versions() -> None:
    def versions(path: Path) -> dict[str, str]:
        pins = [
            line.split()[0].split("==") for line in path.read_text().splitlines() if "==" in line and line[0] != "#"
        ]
        return {name.lower().replace("_", "-"): version for name, version in pins}

    tested = versions(ROOT / "constraints.txt")
    locks = sorted(SCRIPT.parent.glob("requirements*.txt"))
    assert len(locks) == 3
    for path in locks:
        locked = versions(path)
        assert {name: tested.get(name, version) for name, version in locked.items()} == locked
        locked.pop("nvidia-ml-py", None)  # Python alone: what the doctor asks the driver by
        assert not [name for name in locked if name == "torch" or name.startswith(("nvidia-", "triton"))]
        pinned = [block for block in path.read_text().replace("\\\n", "").splitlines() if "==" in block]
        assert all("--hash=sha256:" in line for line in pinned)
