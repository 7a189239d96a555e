"""Jobs in a fake cloud: what is lost comes back, what is over is given back, and nothing is left that costs."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

from cloud_office import BUCKET, EPOCHS, SAVE_SECONDS, SLOW_SECONDS, STEPS, TRAIN, Office, losses_in, wait_until
from fake_cloud import REGIONS, FakeCloud

pytestmark = pytest.mark.slow

UPLOAD_SECONDS = 5.0  # that a checkpoint needs to be written and copied, on a busy host


@pytest.fixture(scope="session")
def undisturbed(office: Office, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of that run on this host, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "train.yaml").write_text(json.dumps(TRAIN | {"project": str(folder), "name": "run"}))
    command = [sys.executable, "-m", "yoloyard", "train", "--config", str(folder / "train.yaml")]
    subprocess.run(command, cwd=office.folder, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return losses_in((folder / "run" / "metrics.jsonl").read_text())


def test_a_preempted_job_resumes_on_another_machine(office: Office, cloud: FakeCloud, undisturbed: list[float]) -> None:
    wait_until(lambda: len(office.losses("line")) >= 2, "two epochs in the backup")
    (first,) = office.instances("line")
    done = json.loads((office.machine_of("line") / "yoloyard-job/runs/line/status.json").read_text())
    cloud.flags = ""
    cloud.preempt(first)
    saved = office.saved_steps("line")
    lost = STEPS * (done["epoch"] - 1) + done["step"] - saved
    assert lost * SLOW_SECONDS <= SAVE_SECONDS + UPLOAD_SECONDS

    wait_until(lambda: office.state("line") == "finished", "the run is finished")
    assert office.losses("line") == pytest.approx(undisturbed, rel=1e-6)
    wait_until(lambda: office.nothing_left_of("line"), "its machine is taken back")
    status = office.status("line")
    assert (status["state"], status["attempts"]) == ("finished", 2)
    epochs = {int(number) for number in re.findall(r"epoch (\d+)/", office.run("jobs", "logs", "line"))}
    assert sorted(epochs) == list(range(saved // STEPS + 1, EPOCHS + 1))  # those of the second machine
    office.run("jobs", "fetch", "line", "--project", "fetched")
    assert (office.folder / "fetched/line/weights/best.safetensors").exists()


@pytest.mark.parametrize(("name", "reason"), [("hours", "max_hours: it has run"), ("cost", "max_cost: it has cost")])
def test_a_limit_saves_ends_and_gives_the_machine_back(office: Office, name: str, reason: str) -> None:
    wait_until(lambda: office.state(name) == "limit", "it is at its limit")
    wait_until(lambda: office.nothing_left_of(name), "its machine is taken back")

    status = office.status(name)
    assert status["state"] == "limit"
    assert reason in status["reason"]
    assert 0 < office.saved_steps(name) < STEPS * EPOCHS


def test_a_job_whose_client_was_killed_can_be_stopped(office: Office, cloud: FakeCloud) -> None:
    """Its machine never answers, so SkyPilot is in the middle of its launch for long."""
    cloud.flags = "deaf"
    office.write_job("deaf")
    client = office.start("launch", "deaf.yaml", "--on", "aws")
    assert client.stdout is not None
    assert any("Launching managed job" in line for line in client.stdout)
    for process in psutil.Process(client.pid).children():
        process.kill()
    wait_until(lambda: office.instances("deaf"), "an instance")
    assert office.status("deaf")["state"] == "starting"
    office.run("jobs", "stop", "deaf")
    wait_until(lambda: office.nothing_left_of("deaf"), "its machine is taken back", 60)


def test_a_job_for_which_there_is_no_room_waits_and_can_be_stopped(office: Office) -> None:
    office.write_job("full")
    office.run("launch", "full.yaml", "--on", "aws")
    status = office.status("full")
    assert (status["state"], status["attempts"]) == ("starting", 0)
    office.run("jobs", "stop", "full")
    assert office.status("full")["state"] == "stopped"
    assert office.nothing_left_of("full")


def test_sweep_ends_what_no_job_explains(office: Office, cloud: FakeCloud) -> None:
    """An instance that SkyPilot has forgotten, and the security group that it keeps for all jobs."""
    user = (cloud.home / ".sky/user_hash").read_text()
    names = {"yoloyard": "yoloyard-lost", "ray-cluster-name": f"yoloyard-lost-7-{user}"}
    tags = [{"Key": key, "Value": value} for key, value in names.items()]
    client = cloud.client("ec2", REGIONS[1])
    orphan = client.run_instances(
        SubnetId=client.describe_subnets()["Subnets"][0]["SubnetId"],
        ImageId=cloud.images[REGIONS[1]], MinCount=1, MaxCount=1, InstanceType="m6i.2xlarge",
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    assert orphan in office.run("jobs", "list", "--all")
    office.run("jobs", "sweep", "--yes")
    assert not office.cloud.instances()


def test_at_the_end_nothing_of_ours_is_left_but_the_backup(cloud: FakeCloud) -> None:
    for region in REGIONS:
        client = cloud.client("ec2", region)
        assert not client.describe_volumes()["Volumes"]
        assert {each["GroupName"] for each in client.describe_security_groups()["SecurityGroups"]} == {"default"}
    assert not cloud.instances("pending", "running", "stopping", "stopped")
    assert [each["Name"] for each in cloud.client("s3").list_buckets()["Buckets"]] == [BUCKET]
