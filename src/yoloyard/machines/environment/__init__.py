"""Facts about the machine, the packages and the code of a run, written beside its results. No secrets among them."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yoloyard.common.versions import versions
from yoloyard.machines.environment import machine, nvml
from yoloyard.machines.environment.inventory import freeze
from yoloyard.machines.environment.secrets import command_without_secrets, variables, without_secrets

GIT_SECONDS = 5  # a run does not wait longer for a huge repository


def facts(device: Any, precision: str, data: Mapping[str, Any], folder: Path = Path(".")) -> dict[str, Any]:
    """What a run needs to say about where it ran, in JSON's types.

    `device`: a torch.device. `precision`: of its arithmetic. `data`: what the splits hold (`Index.facts`), by their
    names. `folder`: of the run, for the free space of its disk.
    """
    import torch

    is_cuda = bool(torch.version.cuda)
    has_nccl = is_cuda and torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "command": command_without_secrets(sys.argv),
        "versions": {**versions(), "torch": str(torch.__version__)},
        "system": platform.platform(),
        "host": platform.node(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        # Only a GPU uses it, and asking loads 55 MB of it.
        "cudnn": torch.backends.cudnn.version() if is_cuda and device.type == "cuda" else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "precision": precision,
        "image": os.environ.get("YOLOYARD_TAG"),  # set in our images
        "variables": variables(),
        "git": git_state(Path.cwd()),
        "data": data,
        "packages": freeze(),
        "machine": machine.gather(Path("/"), folder),
        "nvml": nvml.gather(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Of the Git repository around `folder`: commit, branch, remote, whether tracked files were changed, and the
    SHA-256 of the changes. None without Git or repository; `error` where Git refuses or takes too long."""
    # Optional locks would write to the index; a monitor of file systems is a program of the repository's choice.
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}

    def git(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*command, *argv], capture_output=True, env=environment, timeout=GIT_SECONDS, check=False)

    try:
        done = git("status", "--porcelain=v2", "--branch", "--untracked-files=no")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            return None if "not a git repository" in said else {"error": without_secrets(said)}
        lines = done.stdout.decode(errors="replace").splitlines()
        head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
        changed = sum(not line.startswith("#") for line in lines)
        commit, difference = head.get("branch.oid"), None
        if changed and commit != "(initial)":
            text = git("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--binary").stdout
            difference = hashlib.sha256(text).hexdigest()
        remote = git("config", "--get", "remote.origin.url").stdout.decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return {"error": f"git took longer than {GIT_SECONDS} s"}
    return {
        "error": None,
        "commit": None if commit == "(initial)" else commit,
        "branch": None if head.get("branch.head") == "(detached)" else head.get("branch.head"),
        "remote": without_secrets(remote) or None,
        "changed_files": changed,
        "diff_sha256": difference,
    }
