"""A job as files for `kubectl`, without SkyPilot: the kustomize base, or a TrainJob of Kubeflow Trainer.

Each pod is a host as any other: its folder of the job is /workspace/NAME, filled from a ConfigMap (source, launch), and
the keeper works in it. One pod has it on a volume; several, of a TrainJob, have a disk each, and the object store.
"""

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

import yoloyard.docker
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import write_whole_folder
from yoloyard.common.log import bytes_text
from yoloyard.jobs.data_set import YAML
from yoloyard.jobs.launched import FILE, Launch, write_launch
from yoloyard.jobs.prepare import Prepared
from yoloyard.machines.image.versions import CPU, repository

log = logging.getLogger(__name__)

BASE = Path(yoloyard.docker.__file__).parent / "kubernetes"
SOURCE = "source.tar.gz"  # the images have no git
PARTS = ("job", "secret", "storage")
CONFIG_MAP_BYTES = 900_000  # etcd takes 1.5 MB with all that is around
MARGIN_SECONDS = 3600  # after max_hours, at which the keeper saves and ends: then Kubernetes ends the pods
RESTARTS = 20
FINAL_CODES = [2, 3]  # of the keeper, which trying again does not change: wrong usage, failed
API = "trainer.kubeflow.org/v1alpha1"
SCRIPT = """\
set -e
mkdir -p "/workspace/{name}" && cd "/workspace/{name}"
cp -f /job/launch.json /job/*.yaml .
rm -rf source
mkdir source
tar -xzf /job/source.tar.gz --no-same-owner -C source
touch log.txt
tail --pid=$$ -s 0.2 -n 0 -F log.txt &
exec python -m yoloyard.jobs.node "$PWD" >> log.txt 2>&1
"""


def write_kubernetes(prepared: Prepared, folder: Path) -> None:
    """Write the files into the new folder `folder`, and say what is to be done with them.

    Raises UsageError or UserError for a job that can't be written so.
    """
    launch = prepared.launch
    if folder.exists():
        raise UsageError(f"--to-kubernetes {folder}: it is there already; name another folder, or remove it")
    if launch.nodes > 1 and not (launch.backup and launch.data_source):
        raise UsageError("several pods share no disk: the job needs `backup:`, and `data:` in an object store")
    write_whole_folder(folder, lambda path: _write(prepared, path))
    name, data = _plain(launch.name), prepared.data
    if data.folder is not None:
        log.info(
            f"first copy {len(data.files):,} files ({bytes_text(data.bytes)}) of {data.folder} to {launch.name}/data "
            "on the volume yoloyard-workspace (docs/kubernetes.md)"
        )
    if prepared.job.resources.spot:
        log.info("spot: each cloud has taints and labels of its own for such nodes; add those of yours to the pod")
    what = f"job/{name}" if launch.nodes == 1 else f"trainjob/{name}"
    log.info(f"then: kubectl apply --server-side -k {shlex.quote(str(folder))}; kubectl get {what}")


def _write(prepared: Prepared, folder: Path) -> None:
    """Fill a folder."""
    launch = prepared.launch
    files = folder / "job"
    files.mkdir()
    prepared.source.archive(files / SOURCE)
    (files / YAML).write_text(launch.data_yaml or "", encoding="utf-8")
    write_launch(files / FILE, launch)
    names = sorted(path.name for path in files.iterdir())
    if (size := sum((files / each).stat().st_size for each in names)) > CONFIG_MAP_BYTES:
        raise UserError(
            f"the checkout has {bytes_text(size)} compressed, more than a ConfigMap takes "
            f"({bytes_text(CONFIG_MAP_BYTES)}): `launch --on kubernetes` starts the job by SkyPilot"
        )
    job, secret, storage = (yaml.safe_load((BASE / f"{each}.yaml").read_bytes()) for each in PARTS)
    _fill(job, launch)
    resources = {"secret.yaml": [secret], "storage.yaml": [storage], "job.yaml": [job]}
    if launch.nodes > 1:
        resources = {"secret.yaml": [secret], "trainjob.yaml": _train_job(job, launch)}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(resources),
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": [{"name": f"{_plain(launch.name)}-job", "files": [f"job/{each}" for each in names]}],
    }
    for file, documents in {**resources, "kustomization.yaml": [kustomization]}.items():
        text = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)
        (folder / file).write_text(text, encoding="utf-8")


def _fill(job: dict[str, Any], launch: Launch) -> None:
    """Put this job's values into the base's Job."""
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    job["metadata"] |= {"name": _plain(launch.name), "labels": {"yoloyard": _plain(launch.name)}}
    if launch.max_hours:
        spec["activeDeadlineSeconds"] = int(launch.max_hours * 3600) + MARGIN_SECONDS
    for rule in spec["podFailurePolicy"]["rules"]:
        if rule["action"] == "FailJob":
            rule["onExitCodes"]["values"] = FINAL_CODES
    digest, tag = str(launch.image_digest), f"{launch.image or CPU}-runtime"
    container["image"] = f"{repository()}@{digest}" if digest.startswith("sha256:") else f"{repository()}:{tag}"
    container["args"][-1] = SCRIPT.format(name=launch.name)
    del container["env"]
    if launch.gpus:
        container["resources"]["limits"]["nvidia.com/gpu"] = launch.gpus
    else:
        del container["resources"]["limits"]["nvidia.com/gpu"]
    container["volumeMounts"].append({"name": "job", "mountPath": "/job", "readOnly": True})
    pod["volumes"].append({"name": "job", "configMap": {"name": f"{_plain(launch.name)}-job"}})


def _train_job(job: dict[str, Any], launch: Launch) -> list[dict[str, Any]]:
    """A TrainingRuntime with the pod of a Job, and the TrainJob that has several of it."""
    pod, name = job["spec"]["template"]["spec"], _plain(launch.name)
    (container,) = pod["containers"]
    container["name"] = "node"
    image, args, resources = (container.pop(each) for each in ("image", "args", "resources"))
    container["image"] = image
    for volume in pod["volumes"]:
        if volume["name"] == "workspace":
            del volume["persistentVolumeClaim"]
            volume["emptyDir"] = {}
    final = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": FINAL_CODES}}
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"backoffLimit": 0, "podFailurePolicy": {"rules": [final]}, "template": {"spec": pod}},
        },
    }
    rule = {"name": "over", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    runtime = {
        "mlPolicy": {"numNodes": launch.nodes, "torch": {}},
        "template": {
            "spec": {"failurePolicy": {"maxRestarts": RESTARTS, "rules": [rule]}, "replicatedJobs": [node]},
        },
    }
    trainer = {
        "image": image,
        "numNodes": launch.nodes,
        "numProcPerNode": max(launch.gpus, 1),
        "resourcesPerNode": resources,
        "args": args,
    }
    deadline = {each: job["spec"][each] for each in ("activeDeadlineSeconds",) if each in job["spec"]}
    spec = {"runtimeRef": {"kind": "TrainingRuntime", "name": name}, **deadline, "trainer": trainer}
    kinds = {"TrainingRuntime": runtime, "TrainJob": spec}
    return [{"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": each} for kind, each in kinds.items()]


def _plain(name: str) -> str:
    """A name as Kubernetes takes it."""
    return re.sub("[^a-z0-9]+", "-", name.lower())
