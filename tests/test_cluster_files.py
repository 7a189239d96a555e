"""The files of examples/cluster: valid for the published schemas, with commands that `yoloyard train` understands.

tests/data/README.md says where the schemas come from. No file was applied to a cluster by these tests.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with kubernetes-validate
import kubernetes_validate
import pytest
import yaml

from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.main import app

FILES = Path(__file__).parents[1] / "examples" / "cluster"
SCHEMAS = json.loads((Path(__file__).parent / "data" / "cluster_schemas.json").read_text(encoding="utf-8"))
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "signal"}
SBATCH |= {"output", "open-mode"}  # of the manual of sbatch 22.05, those that the file uses


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FILES / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["jobset.yaml", "trainer.yaml"])
def test_each_resource_is_valid_for_its_schema_and_so_are_its_jobs(name: str) -> None:
    for document in documents(name):
        jsonschema.validate(document, SCHEMAS | {"$ref": f"#/$defs/{document['kind']}"})
        spec = document["spec"]
        for job in (spec.get("template", {}).get("spec") or spec).get("replicatedJobs", ()):
            metadata = {"name": job["name"], **job["template"].get("metadata", {})}
            body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job["template"]["spec"]}
            kubernetes_validate.validate(body, "1.37", strict=True)
            assert len(job["name"]) <= 20  # Trainer 2.4


@pytest.mark.parametrize("wrong", [{"numNode": 4}, {"torch": {"elasticPolicy": {}}}])
def test_a_field_that_the_schema_does_not_know_is_found(wrong: dict[str, Any]) -> None:
    runtime = documents("trainer.yaml")[0]
    runtime["spec"]["mlPolicy"] |= wrong
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate(runtime, SCHEMAS | {"$ref": "#/$defs/TrainingRuntime"})


def test_pods_meet_where_jobset_names_the_first_of_them() -> None:
    (jobset,) = documents("jobset.yaml")
    (job,) = jobset["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    name, port = jobset["metadata"]["name"], container["ports"][0]["containerPort"]
    meeting = f"--nodes {pods['completions']} --rendezvous {name}-{job['name']}-0-0.{name}:{port} "
    assert meeting in container["args"][-1]
    assert pods["parallelism"] == pods["completions"]


def test_the_script_of_slurm_is_bash_with_options_of_sbatch() -> None:
    script = (FILES / "slurm.sh").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert set(re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE)) == SBATCH


def shell_of(name: str) -> tuple[str, dict[str, str]]:
    """The script of a file, and the variables that the file sets."""
    if name == "slurm.sh":
        return (FILES / name).read_text(encoding="utf-8"), {"SLURM_JOB_ID": "7"}
    spec = documents(name)[-1]["spec"]
    if name == "trainer.yaml":
        container = spec["trainer"]
    else:
        (container,) = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    return container["args"][-1], {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("name", ["slurm.sh", "jobset.yaml", "trainer.yaml"])
def test_a_job_begins_a_run_and_goes_on_with_it_when_it_is_started_again(name: str, tmp_path: Path) -> None:
    for program, body in (("yoloyard", 'echo "$@"; exit 143'), ("srun", '"$@"'), ("scontrol", 'echo "$@"')):
        (tmp_path / program).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    script, variables = shell_of(name)
    environment = {**variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run() -> list[str]:
        command = ["bash", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 143  # the status is the training's
        return done.stdout.splitlines()

    assert run()[0].startswith("train --name factory --exist-ok --data factory.yaml ")
    state = tmp_path / "runs" / "factory" / "checkpoints" / "last" / "state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    said = run()
    assert said[0].startswith("train --resume runs/factory")
    assert said[1:] == (["requeue 7"] if name == "slurm.sh" else [])


@pytest.mark.parametrize(
    "path", sorted(path for path in FILES.iterdir() if path.suffix != ".md"), ids=lambda path: path.name
)
def test_every_command_and_every_list_of_its_flags_is_understood(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    flags = re.findall(r"(?:yoloyard train |set -- |arguments=\()(.+?)(?:\)?$| &)", text, re.MULTILINE)
    assert len(flags) > 1
    for words in flags:
        argv = [word for word in shlex.split(words) if "@" not in word]  # "$@"
        app.parse_args(normal_arguments(["train", *argv], app), exit_on_error=False, print_error=False)
