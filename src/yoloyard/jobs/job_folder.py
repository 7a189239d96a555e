"""The folder of a job on a host that is reached by ssh, and the way to run commands there and to send files."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yoloyard.common.errors import UserError, last_line
from yoloyard.machines.containers.host import Host, environment

# Which Debian package has a tool.
TOOLS = {"git": "git", "rsync": "rsync", "flock": "util-linux", "setsid": "util-linux", "timeout": "coreutils",
         "comm": "coreutils", "tail": "coreutils"}  # fmt: skip
PROBE = f"""echo yoloyard:
echo "$HOME"
for tool in {" ".join(TOOLS)}; do command -v $tool > /dev/null || echo $tool; done
"""
FACTS = r"""
echo "user=$(id -u):$(id -g)"
for python in python3.13 python3.12 python3.11 python3; do
    $python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null &&
        { echo "python=$(command -v $python)"; break; }
done
for engine in docker podman; do
    $engine version > /dev/null 2>&1 && { echo "engine=$engine"; break; }
done
for folder in .aws .config/gcloud .azure; do
    [ -d "$HOME/$folder" ] && echo "credentials=$folder"
done
busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager KillUserProcesses \
    2> /dev/null | sed -n 's/b true/kills=yes/p'
"""


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job on a host, in the user's `home` there."""

    host: Host
    home: PurePosixPath
    name: str = ""

    @property
    def root(self) -> PurePosixPath:
        """Where everything of ours lies: jobs/, venvs/ and packages/."""
        return self.home / ".yoloyard"

    @property
    def path(self) -> PurePosixPath:
        """The folder itself."""
        return self.root / "jobs" / self.name

    def facts(self) -> dict[str, list[str]]:
        """What the host has, by the names of `FACTS`."""
        found: dict[str, list[str]] = {}
        for line in self.run("looking at the host", FACTS).splitlines():
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
        return found

    def run(self, doing: str, script: str, *values: object) -> str:
        """What a script of sh prints there, with `values` as its arguments. Raises UserError: `doing` failed."""
        done = self.host.run(["sh"], script_of(script, *values))
        if done.returncode:
            raise UserError(f"{doing} failed on {self.host}: {self._explained(done.stderr)}")
        return done.stdout

    def rsync(self, doing: str, *argv: str | Path, is_shown: bool = False) -> None:
        """Run rsync with this host's connection; paths there are made by `there`. Raises UserError.

        `is_shown`: with a line of progress, where somebody watches.
        """
        shown = ["--info=progress2"] if is_shown and sys.stderr.isatty() else []
        command = ["rsync", "-s", "-e", shlex.join(self.host.ssh()), *shown, *map(str, argv)]
        pipe = subprocess.PIPE
        try:
            done = subprocess.run(command, stdout=2, stderr=pipe, env=environment(), check=False)
        except FileNotFoundError as error:
            raise UserError("rsync is not installed here (package rsync)") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            if done.returncode in (10, 12, 20, 30, 35, 255) and "No space" not in said:
                said = f"the connection broke ({last_line(said)})"
            raise UserError(f"{doing} failed on {self.host}: {self._explained(said)}")

    def there(self, path: PurePosixPath) -> str:
        """A path of the host for rsync."""
        login = self.host.login
        user, at, name = login.rpartition("@")
        return f"{user}{at}[{name}]:{path}" if ":" in name else f"{login}:{path}"

    def _explained(self, said: str) -> str:
        for sign in ("No space left", "Disk quota exceeded", "File too large"):
            if line := next((line for line in said.splitlines() if sign in line), ""):
                larger = f"make room there, or make {self.root} a link to a larger disk, then launch again"
                return f"{line.strip()}. {larger}"
        return last_line(said) + ("; the same command goes on from there" if "connection" in said else "")


def script_of(script: str, *values: object) -> str:
    """The input for `sh` that runs a script with these arguments, so that any login shell will do.

    It is read whole before it begins.
    """
    return f"set -- {shlex.join(map(str, values))}\n{{\n{script}\n}} < /dev/null\n"


def probe(host: Host, name: str = "") -> JobFolder:
    """The folder of a job on `host`, there or not. Raises UserError if the host lacks a tool, or its login shell prints
    something of its own, which rsync can't stand."""
    said = host.run(["sh"], script_of(PROBE))
    before, mark, rest = said.stdout.partition("yoloyard:\n")
    if not mark:
        raise UserError(f"no command can be run on {host}: {last_line(said.stderr) or last_line(said.stdout)}")
    if before:
        remedy = "let it do so in interactive shells alone: in ~/.bashrc below `case $- in *i*) ;; *) return ;; esac`"
        raise UserError(f"the login shell of {host} prints {last_line(before)!r}, which breaks rsync: {remedy}")
    home, *missing = rest.splitlines()
    if missing:
        packages = " ".join(dict.fromkeys(TOOLS[tool] for tool in missing))
        how = f"install it there (Debian, Ubuntu: sudo apt install {packages})"
        raise UserError(f"{', '.join(missing)} is missing on {host}: {how}")
    return JobFolder(host, PurePosixPath(home), name)
