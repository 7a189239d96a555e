"""The Compose files and the editor's file: valid, and safe by default."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docker"


def resolved(*files: Path, **variables: str) -> dict[str, Any]:
    """What podman-compose makes of these files."""
    if importlib.util.find_spec("podman_compose") is None:
        pytest.skip("podman-compose is not installed")
    words = [word for file in files for word in ("-f", str(file))]
    with tempfile.TemporaryDirectory() as folder:
        # It asks for podman's version, and needs no more of it to read files; podman itself need not be there.
        podman = Path(folder, "podman")
        podman.write_text("#!/bin/sh\necho podman version 5.4.2\n", encoding="utf-8")
        podman.chmod(0o755)
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "podman_compose", *words, "config"],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": path, "PWD": "/home/ada/line", "HOME": "/nowhere", **variables},
        )
    assert done.returncode == 0, done.stderr
    service: dict[str, Any] = yaml.safe_load(done.stdout)["services"]["yard"]
    return service


def test_alone_it_is_the_current_folder_on_this_machine_only() -> None:
    service = resolved(IMAGES / "compose.yaml")
    assert service["image"] == "yoloyard:cpu"
    assert service["ports"] == ["127.0.0.1:8888:8888", "127.0.0.1:2222:2222", "127.0.0.1:6006:6006"]
    assert service["volumes"][:2] == ["/home/ada/line:/workspace", "data:/data"]
    assert service["restart"] == "no"
    assert service["stop_grace_period"] == "2m"
    assert "ipc" not in service


def test_variables_fill_it_in() -> None:
    service = resolved(
        IMAGES / "compose.yaml",
        YOLOYARD_IMAGE="registry.example/yoloyard",
        YOLOYARD_TAG="torch2.8-cu128",
        YOLOYARD_ADDRESS="0.0.0.0",
        YOLOYARD_DATA="/mnt/data",
        YOLOYARD_SHM_SIZE="16gb",
    )
    assert service["image"] == "registry.example/yoloyard:torch2.8-cu128"
    assert service["ports"][0] == "0.0.0.0:8888:8888"
    assert service["volumes"][1] == "/mnt/data:/data"
    assert service["shm_size"] == "16gb"


@pytest.mark.parametrize("name", ["compose.gpu.yaml", "compose.cdi.yaml"])
def test_gpu_files_add_all_gpus(name: str) -> None:
    service = resolved(IMAGES / "compose.yaml", IMAGES / name)
    assert service["image"] == "yoloyard:cpu"
    assert "nvidia" in json.dumps(service.get("deploy") or service.get("devices"))


def test_editors_find_the_service_and_the_clone() -> None:
    folder = ROOT / ".devcontainer"
    described = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    files = [folder / name for name in described["dockerComposeFile"]]
    service = yaml.safe_load(files[0].read_text(encoding="utf-8"))["services"][described["service"]]
    assert (folder / service["extends"]["file"]).exists()
    assert all(file.exists() for file in files)
    seen = resolved(*files)["volumes"]
    inside = [volume for volume in seen if volume.endswith(":/workspace")]
    assert len(inside) == 1
    assert (folder / inside[0].removesuffix(":/workspace")).resolve() == ROOT
