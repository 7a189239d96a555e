"""What a run writes of where it ran: code, data, packages, machine; and no secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from yoloyard.data.index.index import Index, Paths, Texts
from yoloyard.machines import environment
from yoloyard.machines.environment import git_state
from yoloyard.machines.environment.inventory import freeze
from yoloyard.machines.environment.secrets import command_without_secrets, variables, without_secrets


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert (git_state(tmp_path) or {})["commit"] is None
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "First")
    git(tmp_path, "remote", "add", "origin", "https://me:hunter2@example.com/a.git")
    clean = {
        "error": None,
        "commit": git(tmp_path, "rev-parse", "HEAD"),
        "branch": "main",
        "remote": "https://***@example.com/a.git",
        "changed_files": 0,
        "diff_sha256": None,
    }
    assert git_state(tmp_path) == clean
    digests = set()
    for text in ("a = 2\n", "a = 3\n"):
        (tmp_path / "a.py").write_text(text)
        state = git_state(tmp_path) or {}
        assert state["changed_files"] == 1
        digests.add(state["diff_sha256"])
    assert len(digests) == 2


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path.cwd()) is None


def index(names: tuple[str, ...] = ("nut",), root: str = "/a", box: float = 1.0, file: str = "1.jpg") -> Index:
    texts = Texts.of([file])
    where = Texts.of([f"{root}/{file}"])
    offsets, boxes, zero = np.array([0, 1]), np.array([[0, 0, box, box]], np.float32), np.array([0])
    paths, sizes = Paths(where.text, where.offsets), np.array([[8, 8]], np.int32)
    return Index(names, paths, sizes, offsets, boxes, zero, np.array([False]), (), zero, zero, texts)


def test_fingerprint_of_data() -> None:
    same = index().fingerprint()
    assert index(root="/elsewhere").fingerprint() == same
    others = {index(names=("bolt",)).fingerprint(), index(box=2.0).fingerprint(), index(file="2.jpg").fingerprint()}
    assert len(others | {same}) == 4
    assert index().facts() == {"images": 1, "boxes": 1, "skipped": 0, "sha256": same}


def test_packages_are_frozen_as_pip_does() -> None:
    pip = [sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(pip, capture_output=True, text=True, check=True).stdout)
    wanted = {f"{row['name'].lower().replace('_', '-').replace('.', '-')}=={row['version']}" for row in listed}
    assert {line.removesuffix(" (editable)") for line in freeze()} >= wanted
    assert any(line.startswith("torch==") for line in freeze())


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["yoloyard", "train", "--data", "a.yaml"], ["yoloyard", "train", "--data", "a.yaml"]),
        (["t.py", "--wandb-key", "abc", "--lr0", "0.1"], ["t.py", "--wandb-key", "***", "--lr0", "0.1"]),
        (["t.py", "--api-token=abc"], ["t.py", "--api-token=***"]),
        (["--data", "https://u:p@h/a?X-Signature=abc&v=1"], ["--data", "https://***@h/a?X-Signature=***&v=1"]),
        (["t.py", "0123456789abcdef" * 2 + "01234567"], ["t.py", "***"]),
        (["t.py", "hf_abcdefghijklmnop"], ["t.py", "***"]),
    ],
)
def test_command_lines_lose_their_secrets(given: list[str], written: list[str]) -> None:
    assert command_without_secrets(given) == written


def test_variables_are_those_that_matter() -> None:
    given = {
        "CUDA_VISIBLE_DEVICES": "0",
        "NCCL_P2P_DISABLE": "1",
        "YOLOYARD_TAG": "cpu",
        "YOLOYARD_JUPYTER_TOKEN": "abc",
        "YOLOYARD_JUPYTER_PASSWORD_HASH": "abc",
        "WANDB_API_KEY": "abc",
        "HOME": "/home/me",
        "PYTHONHASHSEED": "0",
    }
    assert variables(given) == {"CUDA_VISIBLE_DEVICES": "0", "NCCL_P2P_DISABLE": "1", "PYTHONHASHSEED": "0"}
    for secret in ("https://user:p@ss@host/x", "https://host/x?sv=1&sig=ss%2B1", "Bearer ss.1", "ASIASS34567890123456"):
        assert "ss" not in without_secrets(secret).lower().replace("bearer", "")
    assert without_secrets("plain words, /a/path:8080") == "plain words, /a/path:8080"


def test_facts_are_json_and_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "not-to-be-written"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("YOLOYARD_JUPYTER_TOKEN", secret)
    monkeypatch.setenv("YOLOYARD_TAG", "cpu")
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", secret])
    facts = environment.facts(torch.device("cpu"), "float32", {"train": index().facts()})
    text = json.dumps(facts)
    assert secret not in text
    assert facts["image"] == "cpu"
    assert facts["data"]["train"]["boxes"] == 1
    assert {"versions", "git", "packages", "machine", "nvml", "cudnn", "nccl"} <= facts.keys()
