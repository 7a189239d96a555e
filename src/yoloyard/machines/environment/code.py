"""Which code runs: the state of the git repository around the working directory, asked of git, changing nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from yoloyard.machines.environment.secrets import without_secrets

SECONDS = 5  # a run does not wait longer for a huge repository


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch, remote, whether tracked files were changed, and the SHA-256 of the changes.

    None where there is no git or no repository; `error` where git refuses or takes too long.
    """
    try:
        done = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            return None if "not a git repository" in said else {"error": without_secrets(said)}
        lines = done.stdout.decode(errors="replace").splitlines()
        head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
        changed = sum(not line.startswith("#") for line in lines)
        commit, branch = head.get("branch.oid"), head.get("branch.head")
        difference = None
        if changed and commit != "(initial)":
            text = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--binary").stdout
            difference = hashlib.sha256(text).hexdigest()
        remote = _git(folder, "config", "--get", "remote.origin.url").stdout.decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return {"error": f"git took longer than {SECONDS} s"}
    return {
        "error": None,
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "remote": without_secrets(remote) or None,
        "changed_files": changed,
        "diff_sha256": difference,
    }


def _git(folder: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    # Optional locks would write to the index; a monitor of file systems is a program of the repository's choice.
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *argv]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, env=environment, timeout=SECONDS, check=False)
