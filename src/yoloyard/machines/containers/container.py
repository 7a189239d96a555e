"""The one container of a project folder on a host: its Compose files, its state, its engine.

What `up` chose is kept on that host in ~/.local/state/yoloyard/PROJECT/ (or under XDG_STATE_HOME), readable by its
owner alone, since the Jupyter token is in it.
"""

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from yoloyard.common.errors import UserError, last_line
from yoloyard.machines.containers.host import Host

SERVICE = "yard"  # of compose.yaml
USER = "yard"  # who works inside
_STATE = '"${XDG_STATE_HOME:-$HOME/.local/state}/yoloyard/"'
COMPOSE = {"docker": ["docker", "compose"], "podman": ["podman-compose"]}  # how a Compose command of an engine begins
_PACKAGES = {"docker": "docker-compose-plugin", "podman": "podman-compose (or pip install podman-compose)"}  # with it
_INSTALL = "Docker: https://docs.docker.com/engine/install; podman: packages podman and podman-compose"


def find_engine(host: Host, wanted: str | None = None) -> str:
    """Docker or podman on `host`, with Compose, whichever answers. Raises UserError that says what is missing."""
    said = []
    for name in (wanted,) if wanted else COMPOSE:
        done = host.run([name, "version"])
        reason = last_line(done.stderr) or last_line(done.stdout)
        if done.returncode in (126, 127):
            said.append(f"{name} is not installed")
        elif done.returncode and "permission denied" in reason.lower():
            said.append(f"{name} doesn't let you in ({reason}): sudo usermod -aG docker $USER, then log in again")
        elif done.returncode:
            said.append(f"{name} doesn't answer ({reason}): sudo systemctl start {name}")
        elif host.run([*COMPOSE[name], "version"]).returncode:
            said.append(f"{name} is there, but Compose is not: install the package {_PACKAGES[name]}")
        else:
            return name
    raise UserError(f"no container engine can be used on {host}: {'; '.join(said)}. {_INSTALL}")


@dataclass(frozen=True)
class Status:
    """Of a container: its id, `running`, `health` ("healthy", "unhealthy", "starting", or "" where none is defined)."""

    id: str
    running: bool
    health: str
    exit_code: int


class Project:
    """A project folder on `host`: `folder` is absolute there. Two folders of one name are two projects.

    `engine` ("docker" or "podman") runs its container.
    """

    def __init__(self, host: Host, folder: PurePosixPath, engine: str = "") -> None:
        self.host, self.folder, self.engine = host, folder, engine
        plain = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-") or "project"
        self.name = f"yoloyard-{plain[:40]}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"

    def settings(self) -> dict[str, str]:
        """What the last `up` chose; empty if there was none."""
        text = self.host.run(["sh", "-c", f"cat {_STATE}{self.name}/.env"]).stdout
        return dict(re.findall(r"^(YOLOYARD_\w+)='([^']*)'$", text, re.MULTILINE))

    def write(self, settings: dict[str, str], service: dict[str, Any]) -> None:
        """Keep `settings` as the variables of compose.yaml, and `service` as what is added to its service."""
        for name in ("YOLOYARD_WORKSPACE", "YOLOYARD_DATA"):
            if sign := re.search(r"[':\n]", settings.get(name, "")):
                raise UserError(f"{settings[name]} can't be mounted: rename the folder, its path has a {sign[0]!r}")
        files = {
            ".env": "".join(f"{name}='{value.replace(chr(39), '')}'\n" for name, value in settings.items()),
            "compose.yaml": (resources.files("yoloyard.docker") / "compose.yaml").read_text(encoding="utf-8"),
            "service.yaml": json.dumps({"services": {SERVICE: service}}, indent=2) + "\n",  # JSON is YAML
        }
        place = f"{_STATE}{self.name}"
        for name, text in files.items():
            script = f"umask 077; mkdir -p {place} && cd {place} && cat > {name}.tmp && mv {name}.tmp {name}"
            self.host.ask(["sh", "-c", script], text)

    def compose(self, *argv: str) -> list[str]:
        """The argv of a Compose command for this project."""
        files = ["-p", self.name, "--env-file", ".env", "-f", "compose.yaml", "-f", "service.yaml"]
        return ["sh", "-c", f"cd {_STATE}{self.name} && exec {shlex.join([*COMPOSE[self.engine], *files, *argv])}"]

    def status(self) -> Status | None:
        """The container, if there is one."""
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={SERVICE}"]
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        found = self.host.ask([self.engine, "ps", "--all", "--quiet", "--no-trunc", *filters]).split()
        if not found:
            return None
        described = json.loads(self.host.ask([self.engine, "container", "inspect", found[0]]))[0]
        state = described["State"]
        health = ((state.get("Health") or state.get("Healthcheck") or {}).get("Status") or "").lower()
        if not (described.get("Config") or {}).get("Healthcheck"):
            health = ""
        elif self.engine == "podman" and state.get("Running") and health != "healthy":
            # podman looks by itself only where systemd has timers for it
            looked = self.host.run(["podman", "healthcheck", "run", found[0]])
            health = "healthy" if looked.returncode == 0 else "starting"
        return Status(found[0], bool(state.get("Running")), health, int(state.get("ExitCode") or 0))
