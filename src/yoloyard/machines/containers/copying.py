"""Copies of a project folder, or of an image, to another host over ssh."""

import contextlib
import logging
import os
import shlex
import subprocess
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO, cast

from yoloyard.common.errors import UserError, last_line
from yoloyard.machines.containers.host import Host, environment

log = logging.getLogger(__name__)

LARGE = 10**9  # bytes; more is copied only when asked to
_LEFT_OUT = {"runs", "__pycache__", "node_modules", "wandb", "build", "dist"}


def files_of(folder: Path) -> list[Path]:
    """What belongs to a project, relative to `folder`: what git tracks or doesn't ignore, or else all but clutter.

    Files that hold passwords by custom (`.env`, `.netrc`) are clutter, too.
    """
    asked = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    with contextlib.suppress(FileNotFoundError):  # without Git
        listed = subprocess.run(asked, capture_output=True, check=False)
        if listed.returncode == 0:
            names = {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
            return sorted(Path(name) for name in names if os.path.lexists(folder / name))
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(".")]
        wanted = [name for name in files if not name.startswith((".env", ".netrc"))]
        found += [Path(place, name).relative_to(folder) for name in wanted]
    return sorted(found)


def copy_folder(folder: Path, host: Host, to: PurePosixPath, large_is_fine: bool) -> None:
    """Copy the files of a project into `to` on `host`; what is only there stays.

    Raises UserError if they are larger than a gigabyte, unless that is fine.
    """
    files = files_of(folder)
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.parts[0]] += (folder / file).lstat().st_size
    total = sizes.total()
    if total > LARGE and not large_is_fine:
        most = ", ".join(f"{name} ({size / 1e9:.2f} GB)" for name, size in sizes.most_common(3))
        better = "copied there once (rsync), ignored by git, and mounted with --data FOLDER-ON-THE-HOST"
        remedy = f"--yes copies it all; a data set is better {better}"
        raise UserError(f"{folder} holds {total / 1e9:.2f} GB; most of it is {most}. {remedy}")
    log.info(f"copying {len(files):,} files, {total / 1e6:.1f} MB, to {host}:{to}")
    place, pipe = shlex.quote(str(to)), subprocess.PIPE
    receive = host.command(["sh", "-c", f"mkdir -p {place} && tar -xf - --no-same-owner -C {place}"])
    with subprocess.Popen(receive, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as receiver:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], receiver.stdin), mode="w|") as archive:
                for file in files:
                    archive.add(folder / file, arcname=str(file), recursive=False)
        except BrokenPipeError:
            receiver.stdin = None  # tar has gone; it says why
        output = receiver.communicate()[0].decode(errors="replace")
    if receiver.returncode:
        raise UserError(f"copying to {host}:{to} failed: {last_line(output) or 'tar stopped'}")


def send_image(reference: str, host: Host, engine: str) -> bool:
    """Bring an image that an engine here has to `engine` on `host`; False if none has it."""
    for local in ("docker", "podman"):
        asked = Host().run([local, "image", "inspect", "--format", "{{.Size}}", reference])
        if asked.returncode == 0:
            break
    else:
        return False
    size = asked.stdout.strip()
    log.info(f"sending the image {reference}{f', {int(size) / 1e9:.1f} GB,' if size.isdigit() else ''} to {host}")
    pipe, load = subprocess.PIPE, host.command([engine, "load"])
    with (
        subprocess.Popen([local, "save", reference], stdout=pipe, env=environment()) as saving,
        subprocess.Popen(load, stdin=saving.stdout, stdout=pipe, stderr=subprocess.STDOUT) as loading,
    ):
        assert saving.stdout is not None
        saving.stdout.close()  # it is the other process's now
        output = loading.communicate()[0].decode(errors="replace")
    if saving.returncode or loading.returncode:
        raise UserError(f"sending {reference} to {host} failed: {last_line(output)}")
    if host.run([engine, "image", "inspect", reference]).returncode:
        host.ask([engine, "tag", f"localhost/{reference}", reference])  # podman's name for an image without a registry
    return True
