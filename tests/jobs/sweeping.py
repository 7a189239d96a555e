"""Run where SkyPilot and moto are: what `yoloyard jobs sweep` finds in an AWS that has two hosts, a disk and a group.

Prints one JSON document: what was found, what of it is an orphan, and what is there after the sweep.
"""

import contextlib
import json
from typing import Any

import boto3
from moto import mock_aws
from sky.client import sdk
from sky.clouds.aws import DEFAULT_SECURITY_GROUP_NAME
from sky.jobs.utils import generate_managed_job_cluster_name
from sky.utils.common_utils import get_user_hash

from yoloyard.cli.main import main
from yoloyard.common.errors import UserError
from yoloyard.jobs import sweep

REGION = "us-east-2"


def tags(cluster: str) -> list[dict[str, str]]:
    own = {"yoloyard": "yoloyard-cracks", "skypilot-cluster-name": cluster}
    return [{"Key": key, "Value": value} for key, value in own.items()]


def started(ec2: Any, cluster: str, is_ours: bool = True) -> str:
    labels = tags(cluster) if is_ours else [{"Key": "team", "Value": "vision"}]
    (host,) = ec2.run_instances(
        ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="g4dn.xlarge",
        TagSpecifications=[{"ResourceType": "instance", "Tags": labels}],
    )["Instances"]  # fmt: skip
    return str(host["InstanceId"])


def refuse() -> None:
    raise UserError("kubectl: the server does not answer")


with mock_aws():
    ec2 = boto3.client("ec2", region_name=REGION)
    live = generate_managed_job_cluster_name("yoloyard-cracks", 7)
    of_live = started(ec2, f"{live}-{get_user_hash()}")
    orphan = started(ec2, f"yoloyard-cracks-3-{get_user_hash()}")
    of_others = started(ec2, "yoloyard-rust-1-0badc0de")
    foreign = started(ec2, "", is_ours=False)
    disk = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=50, TagSpecifications=[
        {"ResourceType": "volume", "Tags": tags(f"yoloyard-cracks-3-{get_user_hash()}")}])["VolumeId"]  # fmt: skip
    group = ec2.create_security_group(GroupName=DEFAULT_SECURITY_GROUP_NAME, Description="-")["GroupId"]
    rows: list[dict[str, Any]] = [{"job_id": 7, "job_name": "yoloyard-cracks", "is_over": False}]
    sweep.records = lambda sky, must_know=False: list(rows)
    sweep._price = lambda *facts: 0.5
    sweep.LOOK_SECONDS = 0.01
    sweep.PROVIDERS["kubernetes"] = refuse  # type: ignore[assignment]
    sdk.enabled_clouds, sdk.get = lambda: ["AWS", "Kubernetes", "Vast"], lambda found: found
    found, failures = sweep.everything()
    names = {of_live: "live", orphan: "orphan", of_others: "others", foreign: "foreign", disk: "disk", group: "group"}
    first = {names[each.id]: [each.kind, each.job, each.is_own, each.region, each.price] for each in found}
    rows.clear()  # the live job ends, and its host is forgotten

    def left() -> list[str]:
        return sorted(names[each.id] for each in sweep.everything()[0])

    with contextlib.suppress(SystemExit):
        main(["jobs", "sweep", "--yes"])
    still = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])
    running = sorted(names[each["InstanceId"]] for group in still["Reservations"] for each in group["Instances"])
    print("found:" + json.dumps({"first": first, "failures": failures, "left": left(), "running": running}))
