"""A host behind a real sshd, which the tests start on 127.0.0.1 with keys of their own, for an ordinary user.

Where the tests run as root, the user exists in a namespace of sshd's own alone, so none is made.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from yoloyard.cli.main import main

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
UID, USER = 54321, "yarduser"
SYSTEM = "/usr/local/bin:/usr/bin:/bin"


def missing() -> str:
    """Why no such host can be had here; empty if it can."""
    found = {"sshd": SSHD} | {name: shutil.which(name) for name in ("ssh", "rsync", "git", "flock")}
    lacking = [name for name, path in found.items() if not path]
    return f"not installed here: {', '.join(lacking)} (openssh-server, rsync, git, util-linux)" if lacking else ""


def has_namespaces() -> bool:
    """May the tests have mounts of their own?"""
    return os.getuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


class SshHost:
    """`home` is the home folder of its user, `programs` comes first on the PATH of its sessions, before `path`.

    `disk`: megabytes of a disk of its own, for the home folder; it needs namespaces.
    """

    def __init__(
        self, folder: Path, shell: str = "/bin/sh", home: str = "home", path: str = SYSTEM, disk: int = 0
    ) -> None:
        self.folder, self.home, self.programs, self._keys = folder, folder / home, folder / "bin", folder / "keys"
        for made in (self._keys, self.home, self.programs):
            made.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._keys / name], check=True)
        self.host_key = (self._keys / "host.pub").read_text()
        # Where pip finds packages on this machine, it finds them there.
        mirrors = "".join(f' {name}="{value}"' for name, value in os.environ.items() if name.startswith("PIP_"))
        (self._keys / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self._keys}/host\nStrictModes no\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self._keys}/user.pub\nPasswordAuthentication no\nPermitRootLogin yes\n"
            f'SetEnv PATH={self.programs}:{path} HOME="{self.home}" YOLOYARD_TICK_SECONDS=0.2{mirrors}\n'
        )
        self._log = (folder / "sshd.log").open("wb")
        command, self.user = [str(SSHD), "-D", "-e", "-f", str(self._keys / "sshd_config")], getpass.getuser()
        if has_namespaces():
            self.user = USER
            passwd = f"{USER}:x:{UID}:{UID}::{self.home}:{shell}\n"
            (folder / "passwd").write_text(Path("/etc/passwd").read_text() + passwd)
            mounts = f"mount --bind {shlex.quote(str(folder / 'passwd'))} /etc/passwd"
            if disk:
                mounts += f" && mount -t tmpfs -o size={disk}m,uid={UID} none {shlex.quote(str(self.home))}"
            # The Python of the tests may lie where another user can't look; it may be read, and no more.
            user = [f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--inh-caps=-all,+dac_read_search"]
            argv = shlex.join(["setpriv", *user, "--ambient-caps=+dac_read_search", *command])
            command = ["unshare", "--mount", "sh", "-c", f"{mounts} && exec {argv}"]
        elif os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
        self.own()
        self._server = subprocess.Popen(command, stderr=self._log, start_new_session=True)
        wait_until(self._listens)

    @property
    def address(self) -> str:
        """As `--on` takes it."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    @property
    def job_folders(self) -> Path:
        """Where the folders of jobs are, as seen from the tests."""
        return Path(f"/proc/{self._server.pid}/root{self.home}/.yoloyard/jobs")

    def own(self) -> None:
        """Give all that tests have put there to its user."""
        if self.user == USER:
            subprocess.run(["chown", "-R", f"{UID}:{UID}", self.folder], check=True)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def program(self, name: str, script: str) -> None:
        """Put a program in front of the others of that name."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def cut(self) -> int:
        """Break all connections, as a network that fails does; how many there were."""
        found = psutil.Process(self._server.pid).children(recursive=True)
        sessions = [process for process in found if process.name().startswith("sshd")]
        for session in sessions:
            session.kill()
        return len(sessions)

    def close(self) -> None:
        """End it, with all that still runs there."""
        self.cut()
        self._server.kill()
        self._server.wait()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.folder):
                    process.kill()
        self._log.close()


class Laptop:
    """A machine that launches: a home folder, a repository, and an `ssh` that has the keys of a host."""

    def __init__(self, folder: Path, host: SshHost) -> None:
        self.folder, self.home, programs = folder, folder / "home", folder / "bin"
        for made in (self.home, programs):
            made.mkdir(parents=True)
        self.known_hosts = folder / "known_hosts"
        self.known(host)
        self.program("ssh", f'exec {shutil.which("ssh")} -F none -i {folder}/key -o IdentitiesOnly=yes '
                     f'-o UserKnownHostsFile={folder}/known_hosts "$@"')  # fmt: skip
        state = {"HOME": str(self.home), "PATH": f"{programs}:{SYSTEM}", "GIT_CONFIG_NOSYSTEM": "1"}
        self.variables = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "YOLOYARD_"))} | state

    def known(self, host: SshHost) -> None:
        """Know a host and have its key, and no other's."""
        self.known_hosts.write_text(f"[127.0.0.1]:{host.port} {host.host_key}")
        key = self.folder / "key"
        key.write_bytes((host.folder / "keys/user").read_bytes())
        key.chmod(0o600)

    def program(self, name: str, script: str) -> None:
        """Put a program in front of the others of that name."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start a command of yoloyard in the folder of the repository, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "yoloyard", *map(str, words)], cwd=self.folder, env=self.variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def run(self, *words: object, code: int = 0) -> str:
        """What such a command prints, in this process; it must end with this exit status."""
        said, before = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True), dict(os.environ)
        os.environ.update(self.variables)
        try:
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                main(list(map(str, words)))
            ended = 0
        except SystemExit as error:
            ended = int(error.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(before)
        text = said.buffer.getvalue().decode()
        assert ended == code, text
        return str(text)


@contextlib.contextmanager
def ssh_host(**options: str | int) -> Iterator[SshHost]:
    """A host that runs within the context, in a folder that any user may look into."""
    with tempfile.TemporaryDirectory(prefix="yoloyard-host-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        host = SshHost(Path(folder), **options)  # type: ignore[arg-type]
        try:
            yield host
        finally:
            host.close()


def wait_until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    """Look until it is so; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)
