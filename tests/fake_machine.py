"""A machine of fakes: `docker`, `nvidia-smi` and others are scripts on a PATH of the test, and note their calls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

# A docker whose containers, images and labels are files in a folder.
DOCKER = r"""
case "$1 $2" in
  "version "*) exit 0 ;;
  "compose version") exit 0 ;;
  "info "*) case "$*" in *Runtimes*) cat "$STATE/runtimes" ;; *) echo 0 ;; esac ;;
  "image inspect") [ -e "$STATE/image" ] || exit 1; echo 1000 ;;
  "ps "*) [ -e "$STATE/container" ] && echo c0ffee; exit 0 ;;
  "container inspect") cat "$STATE/container" ;;
  "logs "*) echo "the disk is full" ;;
  "load ") cat > "$STATE/image" ;;
  "save "*) echo "layers of an image" ;;
  "pull "*) touch "$STATE/image" ;;
  "exec "*) exit 7 ;;
  "compose "*)
    case "$*" in
      *" up "*) cp .env service.yaml "$STATE/"; cp "$STATE/next" "$STATE/container" ;;
      *" down "*) rm "$STATE/container" ;;
    esac ;;
  *) echo "not faked: $*" >&2; exit 9 ;;
esac
"""


class Machine:
    """A folder of fakes; `state` is what the fake docker knows."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.state, self.calls_file = folder / "bin", folder / "docker", folder / "calls"
        for made in (self.programs, self.state):
            made.mkdir(parents=True)
        # Only what a plain machine has; no engine and no GPU of the machine that runs the tests.
        for name in ("sh", "cat", "mkdir", "mv", "cp", "rm", "touch", "test", "tar", "git", "env", "pwd", "ssh-add"):
            if found := shutil.which(name):
                (self.programs / name).symlink_to(found)

    def fake(self, name: str, script: str) -> None:
        """Put a program there that notes its words and runs `script`."""
        path = self.programs / name
        head = f"#!/bin/sh\nSTATE='{self.state}'\necho \"{name} $*\" >> '{self.calls_file}'\n"
        path.write_text(head + script, encoding="utf-8")
        path.chmod(0o755)

    def with_docker(self, image: bool = True, nvidia: bool = False) -> Machine:
        """Docker with Compose, and a container that is healthy once it is up."""
        self.fake("docker", DOCKER)
        (self.state / "runtimes").write_text('{"nvidia": {}}' if nvidia else '{"runc": {}}')
        self.next_container()
        if image:
            (self.state / "image").touch()
        return self

    def with_gpus(self, *rows: str) -> Machine:
        """nvidia-smi that lists rows like "570.26, 8.6, NVIDIA RTX A4000"."""
        self.fake("nvidia-smi", "".join(f"echo '{row}'\n" for row in rows))
        return self

    def next_container(self, running: bool = True, health: str = "healthy", exit_code: int = 0) -> None:
        """What docker inspect says of the container after the next `up`."""
        state = {"Running": running, "ExitCode": exit_code, "Health": {"Status": health}}
        described = [{"State": state, "Config": {"Healthcheck": {"Test": ["CMD", "true"]}}}]
        (self.state / "next").write_text(json.dumps(described))

    def calls(self, of: str) -> list[str]:
        """The calls that begin with `of`."""
        if not self.calls_file.exists():
            return []
        return [line for line in self.calls_file.read_text().splitlines() if line.startswith(of)]
