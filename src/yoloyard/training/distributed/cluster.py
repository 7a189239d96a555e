"""What is known without a flag: the environment variables in which clusters say who takes part in a job.

A process is one of the run's processes already, as torchrun and `srun` with a task for each GPU start them, or the one
on its host that starts the others. Each function below knows one cluster; PLACES has their order.
"""

import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

LAUNCH = "YOLOYARD_LAUNCH"  # the variable that names a run for all its processes, also when they start again
PORT = 29400  # where hosts meet if nothing says it; torch's own default
JOB_PORTS = range(20_000, 30_000)  # below those that a system gives away by itself; one of them for a job of Slurm
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

Variables = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where this process stands in a job. What the cluster does not say is empty, or None."""

    nodes: str = ""  # hosts of the run, as in `--nodes`
    endpoint: str = ""  # HOST:PORT, where they meet
    is_head: bool | None = None  # is that this host?
    run_id: str = ""  # of this job alone: the same on all of them, and when the job is started again
    processes: str = ""  # of this host: a number; or auto, gpu, cpu, as torchrun calls them
    worker: dict[str, str] = field(default_factory=dict)  # torchrun's variables, if this process is one of the run's


def is_worker(variables: Variables = os.environ) -> bool:
    """Was this process started as one of a run's, by torchrun or what sets the same variables? It may be the only one.

    PyTorchJob sets them for a pod, which starts its processes itself; only those have a LOCAL_RANK.
    """
    if "PET_NNODES" in variables and "LOCAL_RANK" not in variables:
        return False
    return "TORCHELASTIC_RUN_ID" in variables or int(variables.get("WORLD_SIZE", "1")) > 1


def place_here(variables: Variables = os.environ) -> Place:
    """What the environment says of this process; nothing of one that is a worker, which needs no more."""
    if is_worker(variables):
        return Place()
    return next((place for cluster in PLACES if (place := cluster(variables)) is not None), Place())


def become_worker(variables: MutableMapping[str, str] = os.environ) -> None:
    """Where Slurm has started this process as one of the run's, set torchrun's variables."""
    variables.update(place_here(variables).worker)


def device_number(variables: Variables = os.environ) -> int:
    """Which of the devices that this process sees is its own, if each process of this host has one."""
    if not is_worker(variables):
        return 0
    seen = [value for name in GPU_VARIABLES if (value := variables.get(name))]
    has_own = any("," not in value for value in seen)  # --gpus-per-task
    is_task = "SLURM_STEP_ID" in variables and "TORCHELASTIC_RUN_ID" not in variables
    return 0 if is_task and has_own else int(variables.get("LOCAL_RANK", "0"))


def _torchrun(variables: Variables) -> Place | None:
    """Defaults of torchrun's flags, as Kubeflow Trainer sets them, and PyTorchJob, some without PET_.

    PET_RDZV_ID is a name that the next job may have, too.
    """
    if "PET_NNODES" not in variables:
        return None
    rank = variables.get("PET_NODE_RANK")
    return Place(
        nodes=variables["PET_NNODES"],
        endpoint=variables.get("PET_RDZV_ENDPOINT") or _master(variables, "PET_") or _master(variables),
        is_head=None if rank is None else rank == "0",
        processes=variables.get("PET_NPROC_PER_NODE") or variables.get("PET_N_PROC_PER_NODE", ""),
    )


def _slurm(variables: Variables) -> Place | None:
    """A step of Slurm (`srun`); not the script of sbatch itself, nor an interactive shell, which are no step of tasks.

    One task a host starts the processes of its host; more are the run's processes themselves.
    """
    step, job = variables.get("SLURM_STEP_ID", ""), variables.get("SLURM_JOB_ID", "")
    if not (step.isdecimal() and int(step) < 0xFFFFFFF0 and job.isdecimal()):  # above: numbers of special steps
        return None
    tasks, hosts = (int(variables.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES"))
    number, host = int(variables.get("SLURM_NODEID", "0")), first_host(variables.get("SLURM_STEP_NODELIST", ""))
    address = variables.get("MASTER_ADDR", host)
    port = variables.get("MASTER_PORT") or str(JOB_PORTS[(int(job) * 7 + int(step)) % len(JOB_PORTS)])
    if tasks == 1:
        return None
    if tasks == hosts:
        gpus = variables.get("SLURM_GPUS_ON_NODE", "")
        return Place(str(hosts), f"{address}:{port}", number == 0, f"slurm-{job}.{step}", gpus)
    counts = task_counts(variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
    worker = {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(counts[number] if number < len(counts) else tasks // hosts),
        "GROUP_RANK": str(number),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        LAUNCH: f"slurm-{job}.{step}",
    }
    return Place(worker=worker)


def _skypilot(variables: Variables) -> Place | None:
    """A task of SkyPilot with several nodes; a managed job that is recovered keeps its id."""
    addresses = variables.get("SKYPILOT_NODE_IPS", "").split()
    if len(addresses) < 2:
        return None
    return Place(
        nodes=variables.get("SKYPILOT_NUM_NODES", str(len(addresses))),
        endpoint=f"{addresses[0]}:{PORT}",
        is_head=variables.get("SKYPILOT_NODE_RANK") == "0",
        run_id=variables.get("SKYPILOT_TASK_ID", ""),
        processes=variables.get("SKYPILOT_NUM_GPUS_PER_NODE", ""),
    )


def _indexed_job(variables: Variables) -> Place | None:
    """An indexed Job of Kubernetes, as JobSet makes them, with MASTER_ADDR and MASTER_PORT as in JobSet's examples.

    How many pods it has is in no variable, so `--nodes` says it: each pod may as well be a run of its own.
    """
    index = variables.get("JOB_COMPLETION_INDEX")
    if index is None:
        return None
    return Place(endpoint=_master(variables), is_head=index == "0")


PLACES: tuple[Callable[[Variables], Place | None], ...] = (_torchrun, _slurm, _skypilot, _indexed_job)


def first_host(hosts: str) -> str:
    """The first name in a host list of Slurm, such as `gpu[03-05,9],cpu1`; empty if there is none."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else "")


def task_counts(text: str) -> list[int]:
    """The tasks of each host, as Slurm writes them: `2(x3),1` is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _master(variables: Variables, prefix: str = "") -> str:
    """HOST:PORT of two variables; empty without the first."""
    host = variables.get(f"{prefix}MASTER_ADDR", "")
    return f"{host}:{variables.get(f'{prefix}MASTER_PORT', PORT)}" if host else ""
