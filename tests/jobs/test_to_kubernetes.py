"""`launch --to-kubernetes`: files that are valid for the published schemas, with all of the job in them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with kubernetes-validate
import kubernetes_validate
import pytest
import yaml
from user_repository import make_repository

from yoloyard.common.errors import UsageError, UserError
from yoloyard.jobs import kubernetes
from yoloyard.jobs.job_file import read_job
from yoloyard.jobs.kubernetes import write_kubernetes
from yoloyard.jobs.launched import read_launch
from yoloyard.jobs.prepare import prepare

SCHEMAS = json.loads((Path(__file__).parents[1] / "data" / "cluster_schemas.json").read_text(encoding="utf-8"))
SEVERAL = "resources: {gpu: RTX 4090, count: 4, nodes: 3}\nbackup: s3://bucket/job\nlimits: {max_hours: 2}\n"


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOYARD_IMAGE", "registry.example/yoloyard")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no engine that knows the digest
    file = make_repository(tmp_path / "one")
    text = file.read_text().replace("resources: {gpu: none}\n", "resources: {gpu: RTX 4090, count: 2}\n")
    file.write_text(f"name: My_Factory\n{text}limits: {{max_hours: 8}}\n")
    return file


def write(job_file: Path, folder: Path) -> dict[str, list[Any]]:
    """The documents of each file that is written."""
    write_kubernetes(prepare(read_job(job_file), "kubernetes"), folder)
    return {path.name: list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in folder.glob("*.yaml")}


def several_pods(job_file: Path) -> None:
    """Let the job have several pods, with its data in an object store."""
    lines = [line for line in job_file.read_text().splitlines() if not line.startswith(("resources", "limits"))]
    job_file.write_text("\n".join(lines) + f"\n{SEVERAL}data: {(job_file.parents[1] / 'demo').as_uri()}\n")


def test_a_job_of_one_pod_is_valid_and_has_the_jobs_values(job_file: Path, tmp_path: Path, said: list[str]) -> None:
    files = write(job_file, tmp_path / "out")
    (kustomization,) = files.pop("kustomization.yaml")
    assert set(kustomization["resources"]) == set(files) == {"job.yaml", "secret.yaml", "storage.yaml"}
    for (document,) in files.values():
        kubernetes_validate.validate(document, "1.37", strict=True)
    (job,) = files["job.yaml"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["metadata"] == {"name": "my-factory", "labels": {"yoloyard": "my-factory"}}
    assert job["spec"]["activeDeadlineSeconds"] == 9 * 3600
    assert container["image"] == "registry.example/yoloyard:torch2.8-cu128-runtime"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {"name": "job", "configMap": {"name": "my-factory-job"}} in pod["volumes"]
    (generator,) = kustomization["configMapGenerator"]
    assert generator["name"] == "my-factory-job"
    assert set(generator["files"]) == {f"job/{path.name}" for path in (tmp_path / "out" / "job").iterdir()}
    launch = read_launch(tmp_path / "out" / "job" / "launch.json")
    assert (launch.name, launch.max_hours, launch.train["processes"]) == ("My_Factory", 8.0, 2)
    assert "to My_Factory/data on the volume" in said[-2]
    assert said[-1].startswith("then: kubectl apply --server-side -k ")


def test_a_cpu_job_asks_for_no_gpu(job_file: Path, tmp_path: Path) -> None:
    job_file.write_text(job_file.read_text().replace("{gpu: RTX 4090, count: 2}", "{gpu: none}"))
    (job,) = write(job_file, tmp_path / "out")["job.yaml"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "32Gi"}


def test_the_pod_checks_the_source_out_and_starts_the_keeper(job_file: Path, tmp_path: Path) -> None:
    (job,) = write(job_file, tmp_path / "out")["job.yaml"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = container["args"][-1].replace("/workspace", str(tmp_path / "workspace"))
    script = script.replace("/job/", f"{tmp_path}/out/job/")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\nls\ncat source/my_model.py\nexit 3\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):  # a pod that replaces another finds the volume as that one left it
        with (tmp_path / "said").open("w") as said:  # a pipe would be open as long as what follows the log
            done = subprocess.run(["sh", "-c", script], env=environment, stdout=said, stderr=said, check=False)
        assert done.returncode == 3, (tmp_path / "said").read_text()
    folder = tmp_path / "workspace" / "My_Factory"
    log = (folder / "log.txt").read_text()
    assert log.startswith(f"-m yoloyard.jobs.node {folder}\n")
    assert "x = 1" in log
    assert set(os.listdir(folder)) == {"launch.json", "data.yaml", "source", "log.txt"}


def test_several_pods_are_a_train_job_that_is_valid_for_its_schema(job_file: Path, tmp_path: Path) -> None:
    several_pods(job_file)
    files = write(job_file, tmp_path / "out")
    assert set(files) == {"kustomization.yaml", "secret.yaml", "trainjob.yaml"}
    runtime, job = files["trainjob.yaml"]
    for document in (runtime, job):
        jsonschema.validate(document, SCHEMAS | {"$ref": f"#/$defs/{document['kind']}"})
    spec = job["spec"]
    assert spec["activeDeadlineSeconds"] == 3 * 3600
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (3, 4)
    assert spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == 4
    assert spec["runtimeRef"]["name"] == runtime["metadata"]["name"] == "my-factory"
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": node["template"]["spec"]}
    kubernetes_validate.validate(body, "1.37", strict=True)
    volumes = {each["name"]: each for each in body["spec"]["template"]["spec"]["volumes"]}
    assert volumes["workspace"] == {"name": "workspace", "emptyDir": {}}


def test_what_can_not_be_written_so_is_refused(job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = job_file.read_text()
    job_file.write_text(text.replace("count: 2}", "nodes: 2}"))
    with pytest.raises(UsageError, match="several pods share no disk: the job needs `backup:`, and `data:`"):
        write(job_file, tmp_path / "out")
    job_file.write_text(text)
    monkeypatch.setattr(kubernetes, "CONFIG_MAP_BYTES", 100)
    with pytest.raises(UserError, match="more than a ConfigMap takes"):
        write(job_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="it is there already; name another folder"):
        write(job_file, tmp_path / "out")
