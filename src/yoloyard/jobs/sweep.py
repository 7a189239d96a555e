"""Everything of ours that costs money in any cloud, and its end where no live job explains it.

Each provider is asked itself, so that what SkyPilot has forgotten is found: by label where there are labels, else by
the name that SkyPilot gives to hosts, which begins with `yoloyard-`.
"""

import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from yoloyard.common.errors import UserError, last_line
from yoloyard.jobs.sky_task import LABEL, PREFIX
from yoloyard.jobs.skypilot import load, records, said

log = logging.getLogger(__name__)

CLUSTER_TAGS = ("skypilot-cluster-name", "ray-cluster-name")  # of AWS
GONE_SECONDS, LOOK_SECONDS = 600.0, 5.0  # that a provider may take to end something, and between two looks


@dataclass(frozen=True)
class Found:
    """Something that a provider has. `price` and `cost` are dollars, an hour and since it began; None: unknown."""

    cloud: str
    kind: str  # host, disk, security group
    id: str
    name: str
    region: str
    began: datetime | None
    price: float | None
    end: Callable[[], object]  # asks the provider to end it
    job: str = ""  # SkyPilot's job that has it; empty: none that is alive
    is_own: bool = False  # this machine's SkyPilot made it

    @property
    def cost(self) -> float | None:
        """Since it began."""
        if self.price == 0:
            return 0.0
        if self.began is None or self.price is None:
            return None
        return self.price * (datetime.now(UTC) - self.began).total_seconds() / 3600


def everything() -> tuple[list[Found], list[str]]:
    """All that has our label or name, and a line for each cloud that could not be asked. Raises UserError."""
    sky = load()
    from sky.client import sdk
    from sky.utils.common_utils import get_user_hash

    with said("SkyPilot can't list its jobs and clouds"):
        live = [row for row in records(sky, must_know=True) if not row["is_over"]]
        if not (clouds := sdk.get(sdk.enabled_clouds())):  # nobody has looked for credentials yet
            sdk.get(sdk.check(None, verbose=False))
            clouds = sdk.get(sdk.enabled_clouds())
    found, failures = [], []
    for cloud in map(str.lower, clouds):
        if cloud not in PROVIDERS:
            failures.append(f"{cloud}: not asked, jobs are not started there")
            continue
        jobs = {start_on(cloud, str(row["job_name"]), row["job_id"]): str(row["job_name"]) for row in live}
        jobs |= {"sky-jobs-controller-": "controller"}
        try:
            with said(cloud):
                for each in PROVIDERS[cloud]():
                    job = next((job for start, job in jobs.items() if each.name.startswith(start)), "")
                    if each.kind == "security group" and live:
                        job = str(live[0]["job_name"])  # SkyPilot shares it among all
                    is_own = get_user_hash() in each.name or each.kind == "security group"
                    found.append(replace(each, job=job, is_own=is_own))
        except UserError as error:
            failures.append(f"{error} (skipped)")
    return found, failures


def start_on(cloud: str, job: str, number: int) -> str:
    """How the names of the hosts of SkyPilot's job begin there: each cloud cuts them to another length.

    Behind it stands the digest of the user who launched it, and which of the hosts it is.
    """
    from sky.jobs.utils import generate_managed_job_cluster_name
    from sky.utils.common_utils import USER_HASH_LENGTH, make_cluster_name_on_cloud
    from sky.utils.registry import CLOUD_REGISTRY

    most = CLOUD_REGISTRY.from_str(cloud).max_cluster_name_length()
    name = generate_managed_job_cluster_name(job, number)
    return make_cluster_name_on_cloud(name, most and most - USER_HASH_LENGTH - 1, add_user_hash=False) + "-"


def end(orphans: Sequence[Found]) -> list[Found]:
    """End all of these, and ask their providers until they are gone; returns those that are not."""
    left, failed = list[Found](), list[Found]()
    for each in orphans:
        log.info(f"ending {each.cloud} {each.kind} {each.id} ({each.name})")
        try:
            with said(f"{each.cloud} can't end {each.id}"):
                each.end()
            left.append(each)
        except UserError as error:
            log.warning(str(error))
            failed.append(each)
    until = time.monotonic() + GONE_SECONDS
    while left and time.monotonic() < until:
        with said("the end can't be confirmed"):
            there = {(each.cloud, each.id) for cloud in {each.cloud for each in left} for each in PROVIDERS[cloud]()}
        left = [each for each in left if (each.cloud, each.id) in there]
        if left:
            time.sleep(LOOK_SECONDS)
    return left + failed


def _price(cloud: str, instance: str, is_spot: bool, region: str, zone: str | None = None) -> float | None:
    from sky import catalog

    try:
        return float(catalog.get_hourly_cost(instance, is_spot, region, zone, clouds=cloud)) or None
    except (ValueError, KeyError, IndexError, AssertionError):  # the catalog doesn't know this type there
        return None


def _aws() -> Iterator[Found]:
    import boto3

    session = boto3.Session()
    first = session.client("ec2", region_name=session.region_name or "us-east-1")
    regions = [each["RegionName"] for each in first.describe_regions()["Regions"]]
    with ThreadPoolExecutor(8) as threads:
        for rows in threads.map(partial(_aws_region, session), regions):
            yield from rows


def _aws_region(session: Any, region: str) -> list[Found]:
    from sky.clouds.aws import DEFAULT_SECURITY_GROUP_NAME

    ec2 = session.client("ec2", region_name=region)
    ours = [{"Name": "tag-key", "Values": [LABEL]}]
    states = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped", "shutting-down"]}
    rows = []
    for page in ec2.get_paginator("describe_instances").paginate(Filters=[*ours, states]):
        for host in (each for group in page["Reservations"] for each in group["Instances"]):
            zone, is_spot = host["Placement"]["AvailabilityZone"], host.get("InstanceLifecycle") == "spot"
            is_billed = host["State"]["Name"] in ("pending", "running")
            price = _price("aws", host["InstanceType"], is_spot, region, zone) if is_billed else None
            finish = partial(ec2.terminate_instances, InstanceIds=[host["InstanceId"]])
            row = ("aws", "host", host["InstanceId"], _name(host), region, host["LaunchTime"], price, finish)
            rows.append(Found(*row))
    free = [*ours, {"Name": "status", "Values": ["available"]}]  # those in use go with their hosts
    for disk in ec2.describe_volumes(Filters=free)["Volumes"]:
        finish = partial(ec2.delete_volume, VolumeId=disk["VolumeId"])
        rows.append(Found("aws", "disk", disk["VolumeId"], _name(disk), region, disk["CreateTime"], None, finish))
    named = [{"Name": "group-name", "Values": [DEFAULT_SECURITY_GROUP_NAME]}]
    for group in ec2.describe_security_groups(Filters=named)["SecurityGroups"]:
        key, name = group["GroupId"], group["GroupName"]
        used = [{"Name": "instance.group-id", "Values": [key]}, states]
        if not ec2.describe_instances(Filters=used)["Reservations"]:
            finish = partial(ec2.delete_security_group, GroupId=key)
            rows.append(Found("aws", "security group", key, name, region, None, 0.0, finish))
    return rows


def _name(thing: dict[str, Any]) -> str:
    """How SkyPilot calls the hosts that something is of."""
    return next((each["Value"] for each in thing["Tags"] if each["Key"] in CLUSTER_TAGS), "") + "-"


def _gcp() -> Iterator[Found]:
    for kind, noun in (("host", "instances"), ("disk", "disks")):
        for each in _asked("gcloud", "compute", noun, "list", f"--filter=labels.{LABEL}:*", "--format=json"):
            if kind == "disk" and each.get("users"):  # goes with its host
                continue
            zone, name = each["zone"].rpartition("/")[2], each["name"]
            region, instance = zone.rpartition("-")[0], each.get("machineType", "").rpartition("/")[2]
            is_spot = each.get("scheduling", {}).get("provisioningModel") == "SPOT"
            is_billed = kind == "host" and each.get("status") != "TERMINATED"
            price = _price("gcp", instance, is_spot, region, zone) if is_billed else None
            finish = partial(_run, "gcloud", "compute", noun, "delete", name, f"--zone={zone}", "--quiet")
            began = datetime.fromisoformat(each["creationTimestamp"])
            yield Found("gcp", kind, str(each["id"]), name, region, began, price, finish)


def _azure() -> Iterator[Found]:
    for each in _asked("az", "vm", "list", "--output", "json"):
        if LABEL in (each.get("tags") or {}):
            region, size = each["location"], each["hardwareProfile"]["vmSize"]
            price = _price("azure", size, each.get("priority") == "Spot", region)
            finish = partial(_run, "az", "vm", "delete", "--yes", "--ids", each["id"])
            if each["resourceGroup"].lower().startswith(PREFIX):  # SkyPilot's own, with disk, address and network
                finish = partial(_run, "az", "group", "delete", "--yes", "--name", each["resourceGroup"])
            began = datetime.fromisoformat(each["timeCreated"])
            yield Found("azure", "host", each["id"], each["name"], region, began, price, finish)


def _kubernetes() -> Iterator[Found]:
    pods = _asked("kubectl", "get", "pods", "--all-namespaces", "--selector", LABEL, "--output", "json")
    for each in pods["items"]:
        facts = each["metadata"]
        finish = partial(_run, "kubectl", "delete", "pod", f"--namespace={facts['namespace']}", facts["name"])
        began = datetime.fromisoformat(facts["creationTimestamp"])
        yield Found("kubernetes", "host", facts["uid"], facts["name"], facts["namespace"], began, None, finish)


def _lambda() -> Iterator[Found]:
    from sky.provision.lambda_cloud.lambda_utils import LambdaCloudClient

    client = LambdaCloudClient()
    for each in client.list_instances():
        if str(each.get("name")).startswith(PREFIX):
            kind, region = each["instance_type"], each["region"]["name"]
            price = kind.get("price_cents_per_hour", 0) / 100 or _price("lambda", kind["name"], False, region)
            finish = partial(client.remove_instances, [each["id"]])
            yield Found("lambda", "host", each["id"], each["name"], region, None, price, finish)


def _runpod() -> Iterator[Found]:
    from sky.adaptors.runpod import runpod

    for each in runpod.get_pods():
        if str(each["name"]).startswith(PREFIX):
            finish = partial(runpod.terminate_pod, each["id"])
            yield Found("runpod", "host", each["id"], each["name"], "", None, each.get("costPerHr"), finish)


PROVIDERS: dict[str, Callable[[], Iterator[Found]]] = {
    "aws": _aws, "gcp": _gcp, "azure": _azure, "kubernetes": _kubernetes, "lambda": _lambda, "runpod": _runpod,
}  # fmt: skip


def _asked(*argv: str) -> Any:
    return json.loads(_run(*argv))


def _run(*argv: str) -> str:
    """What a cloud's own tool prints. Raises UserError."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise UserError(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise UserError(f"{argv[0]}: {last_line(done.stderr)}")
    return done.stdout
