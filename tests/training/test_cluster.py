"""What is understood without a flag, by the variables that each cluster documents."""

import pytest

from yoloyard.common.errors import UsageError
from yoloyard.training.distributed.cluster import (
    Place,
    become_worker,
    device_number,
    first_host,
    is_worker,
    place_here,
    task_counts,
)
from yoloyard.training.distributed.meeting import Meeting, meeting_of

TRAINER = {  # Kubeflow Trainer 2: its torch plugin
    "PET_NNODES": "4",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "line-node-0-0.line",
    "PET_MASTER_PORT": "29500",
    "JOB_COMPLETION_INDEX": "2",
}
PYTORCH_JOB = {  # of the training operator 1.9: RANK is the pod's, WORLD_SIZE counts processes
    "MASTER_ADDR": "line-master-0",
    "MASTER_PORT": "23456",
    "RANK": "1",
    "WORLD_SIZE": "6",
    "PET_NNODES": "3",
    "PET_NPROC_PER_NODE": "2",
    "PET_NODE_RANK": "1",
}
ELASTIC_JOB = {  # PyTorchJob with an elasticPolicy and no master
    "PET_RDZV_ENDPOINT": "line-worker-0:23456",
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_ID": "line",
    "PET_NNODES": "1:4",
    "PET_MAX_RESTARTS": "10",
}
STEP = {  # srun on three hosts of job 4711
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04,9]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_GPUS_ON_NODE": "4",
}
TASKS = STEP | {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
SKYPILOT = {
    "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "0",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_TASK_ID": "sky-managed-2026-11-30-06-21-18-563597_line_1-0",
}
JOB_SET = {
    "JOB_COMPLETION_INDEX": "0",
    "MASTER_ADDR": "line-workers-0-0.line",
    "MASTER_PORT": "3389",
}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place()),
        (TRAINER, Place("4", "line-node-0-0.line:29500", False, "", "8")),
        (PYTORCH_JOB, Place("3", "line-master-0:23456", False, "", "2")),
        (ELASTIC_JOB, Place("1:4", "line-worker-0:23456", None, "", "")),
        (STEP, Place("3", "gpu03:22977", False, "slurm-4711.0", "4")),
        (STEP | {"MASTER_ADDR": "gpu03-ib", "MASTER_PORT": "7"}, Place("3", "gpu03-ib:7", False, "slurm-4711.0", "4")),
        (SKYPILOT, Place("2", "10.0.0.7:29400", True, SKYPILOT["SKYPILOT_TASK_ID"], "8")),
        (SKYPILOT | {"SKYPILOT_NODE_IPS": "10.0.0.7", "SKYPILOT_NUM_NODES": "1"}, Place()),
        (JOB_SET, Place("", "line-workers-0-0.line:3389", True, "", "")),
    ],
)
def test_a_host_hears_where_it_stands(variables: dict[str, str], place: Place) -> None:
    assert place_here(variables) == place
    assert not is_worker(variables)


@pytest.mark.parametrize(
    "absent",
    [
        {"SLURM_STEP_ID": ""},  # the script of sbatch
        {"SLURM_STEP_ID": "4294967290"},  # a shell of salloc
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},  # a shell of srun --pty
    ],
)
def test_a_command_of_slurm_that_is_no_step_of_tasks_is_alone(absent: dict[str, str]) -> None:
    assert place_here(STEP | absent) == Place()


def test_tasks_of_slurm_are_the_processes_of_the_run() -> None:
    variables = dict(TASKS)
    become_worker(variables)
    found = {name: variables[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    assert found == {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("gpu03", "22977")
    assert is_worker(variables)
    assert device_number(variables) == 1
    assert device_number(variables | {"CUDA_VISIBLE_DEVICES": "0,1"}) == 1
    assert device_number(variables | {"CUDA_VISIBLE_DEVICES": "0"}) == 0  # --gpus-per-task=1: it sees its own alone


@pytest.mark.parametrize("around", [TRAINER, PYTORCH_JOB, STEP, SKYPILOT])
def test_processes_that_were_started_on_a_host_are_workers_there(around: dict[str, str]) -> None:
    started = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}
    assert is_worker(around | started)
    assert place_here(around | started) == Place()
    assert is_worker(around | started | {"WORLD_SIZE": "1"})  # the other hosts have gone


def test_flags_win_over_the_cluster() -> None:
    place = place_here(STEP)
    assert meeting_of(None, None, place) == Meeting(3, 3, "gpu03:22977", "slurm-4711.0", False)
    assert meeting_of("2:3", None, place) == Meeting(2, 3, "gpu03:22977", "slurm-4711.0", False)
    assert meeting_of(None, "a:1", place) == Meeting(3, 3, "a:1", "slurm-4711.0", None)
    assert meeting_of("1", None, place) == Meeting()
    assert meeting_of("4", "[::1]:29400") == Meeting(4, 4, "[::1]:29400", "yoloyard")
    assert meeting_of("4", None, place_here(JOB_SET)).endpoint == "line-workers-0-0.line:3389"
    assert (
        meeting_of(None, None, place_here(JOB_SET)) == Meeting()
    )  # a Job of runs that have nothing to do with each other


@pytest.mark.parametrize(
    ("nodes", "rendezvous", "message"),
    [
        ("0", None, "--nodes 0: say how many hosts"),
        ("4:1", None, "--nodes 4:1: say how many hosts"),
        ("2", None, "say where the hosts meet"),
        ("2", "trainer-0", "say HOST:PORT"),
        ("2", "trainer-0:99999", "say HOST:PORT"),
        ("2", "http://trainer-0:29400", "say HOST:PORT"),
    ],
)
def test_what_makes_no_meeting_is_a_usage_error(nodes: str, rendezvous: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        meeting_of(nodes, rendezvous)


def test_tasks_of_slurm_take_no_flags_of_hosts() -> None:
    assert meeting_of("1", None, place_here(TASKS)) == Meeting()  # each task trains by itself
    with pytest.raises(UsageError, match="leave out --nodes"):
        meeting_of("3", None, place_here(TASKS))


def test_lists_of_slurm() -> None:
    assert first_host("a[1-2]-x[07,9],b") == "a1-x07"
    assert first_host("login") == "login"
    assert task_counts("2(x3),1") == [2, 2, 2, 1]
