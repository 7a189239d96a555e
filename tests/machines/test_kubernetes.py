"""The Kubernetes base: valid for the published schemas, safe by default, and a job that goes on where it was."""

import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import yoloyard.docker

BASE = Path(yoloyard.docker.__file__).parent / "kubernetes"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))


def resource(name: str) -> Any:
    return yaml.safe_load((BASE / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("name", KUSTOMIZATION["resources"])
def test_each_resource_is_valid_for_the_published_schemas(name: str, version: str) -> None:
    kubernetes_validate.validate(resource(name), version, strict=True)


def test_the_kustomization_names_all_files_and_the_image_of_the_job() -> None:
    assert {"kustomization.yaml", *KUSTOMIZATION["resources"]} == {path.name for path in BASE.glob("*.yaml")}
    (container,) = resource("job.yaml")["spec"]["template"]["spec"]["containers"]
    assert [image["name"] for image in KUSTOMIZATION["images"]] == [container["image"]]


def test_the_job_has_its_gpu_its_shared_memory_its_storage_and_its_secret() -> None:
    pod = resource("job.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts["/workspace"]["persistentVolumeClaim"]["claimName"] == resource("storage.yaml")["metadata"]["name"]
    assert container["envFrom"][0]["secretRef"]["name"] == resource("secret.yaml")["metadata"]["name"]
    assert pod["securityContext"]["runAsNonRoot"]


def test_the_job_begins_a_run_and_a_later_pod_goes_on_with_it(tmp_path: Path) -> None:
    (container,) = resource("job.yaml")["spec"]["template"]["spec"]["containers"]
    fake = tmp_path / "yoloyard"
    fake.write_text('#!/bin/sh\necho "$@"\nexit 7\n', encoding="utf-8")
    fake.chmod(0o755)
    variables = {variable["name"]: variable["value"] for variable in container["env"]}

    def run() -> str:
        environment = {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            container["args"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 7  # the status is the training's
        return done.stdout.strip()

    first = run()
    assert first == "train --name factory --exist-ok --data factory.yaml --model yolo11n --epochs 100"
    state = tmp_path / "runs" / "factory" / "checkpoints" / "last" / "state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    assert run() == "train --resume runs/factory"
    state.parent.rename(state.parent.with_name(".last.old"))  # killed between two renames
    assert run() == "train --resume runs/factory"
