"""A fake AWS for SkyPilot: moto's server for the API, and a machine for each instance that runs.

Everything happens in a network of its own that leads nowhere: an office, where SkyPilot, yoloyard and moto run, and a
bridge with the machines. A machine is a network namespace, process numbers from 1, and a copy of this host's root whose
changes lie in memory, with an SSH server. It already has what SkyPilot would download.
"""

import base64
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import yaml

from cloud_environment import FOLDER, INSTALLED, PYTHON
from host_network import ip
from yoloyard.jobs.setting_up import venv_name
from yoloyard.machines.image.versions import tags

REGIONS = ("us-east-1", "us-east-2")
GATEWAY, PORT = "172.31.255.254", 5000  # of the office, as the machines see it; no default subnet has it
ENDPOINT = f"http://{GATEWAY}:{PORT}"
CREDENTIALS = {"aws_access_key_id": "KEYOFTHETESTS0000001", "aws_secret_access_key": "secret-of-the-tests-0000000001"}
INSTANCES = (  # type, GPU, cores, price on demand and spot in each region
    ("m6i.2xlarge", "", 8, (0.384, 0.12), (0.384, 0.13)),
    ("g4dn.xlarge", "T4", 4, (0.526, 0.19), (0.526, 0.2)),
)
ENABLED_HOSTS = ("8.8.8.8", "1.1.1.1")  # SkyPilot asks them whether there is a network at all
VENVS = " ".join(venv_name(tag) for tag in tags().values())  # what is installed here, machines find under these names
CLONE_NEWNET = 0x40000000

# Runs in namespaces of its own: its root is this host's with the changes in memory, then there is an SSH server.
BOOT = r"""
set -e
folder=$1 files=$2 packages=$3 name=$4 flags=$5 here=$6 venvs=$7
mount -t tmpfs machine "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay machine -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
hostname "$name"
cd "$folder/root"
mount --rbind /dev dev
mount -t tmpfs shm dev/shm
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs run run
mount -t tmpfs -o mode=1777 tmp tmp
mkdir -p home/ubuntu run/sshd
cp -r "$files" run/machine
mount -t tmpfs home home/ubuntu
sed -i '1i ubuntu:x:0:0::/home/ubuntu:/bin/bash' etc/passwd
printf '127.0.0.1 localhost %s\n' "$name" > etc/hosts
rm -f etc/resolv.conf; touch etc/resolv.conf
mkdir -p home/ubuntu/.ssh home/ubuntu/.local/bin home/ubuntu/.yoloyard/venvs
cp run/machine/authorized_keys home/ubuntu/.ssh/
ln -s "$packages/bin/uv" home/ubuntu/.local/bin/uv
ln -s "$packages" home/ubuntu/skypilot-runtime
touch ".$here/whole"
for venv in $venvs; do ln -s "$here" "home/ubuntu/.yoloyard/venvs/$venv"; done
cp "$files/sudo" "$files/shutdown" usr/local/bin/
case $flags in *slow*) touch etc/slow ;; esac
case $flags in *deaf*) exec sleep infinity ;; esac
exec chroot . /usr/sbin/sshd -D -e -f /run/machine/sshd_config
"""

# moto's server, where there is no room for instances of the job `full`.
SERVER = """
import sys
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import InstanceBackend
from moto.server import main

run_instances = InstanceBackend.run_instances

def run_or_refuse(self, *arguments, **settings):
    if "yoloyard-full" in str(settings.get("tags")):
        raise EC2ClientError("InsufficientInstanceCapacity", "There is no capacity for this type.")
    return run_instances(self, *arguments, **settings)

InstanceBackend.run_instances = run_or_refuse
main(sys.argv[1:])
"""
SUDO = """#!/bin/sh
while :; do case $1 in -*) shift ;; *) exec env "$@" ;; esac; done
"""
SHUTDOWN = """#!/bin/sh
case $* in *+*) (sleep $((60 * ${*##*+})) && kill -TERM 1) > /dev/null 2>&1 & ;; *) kill -TERM 1 ;; esac
"""
SSHD = """
Port 22
HostKey /run/machine/host_key
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv {variables}
"""


def is_possible() -> str:
    """Why there can be no fake cloud here; empty if there can."""
    if not INSTALLED.exists():
        return "SkyPilot is not installed"
    if not (FOLDER / "bin/ray").exists():
        return "Ray 2.9.3, which SkyPilot 0.14 needs on its hosts, has no wheel for this Python"
    if missing := [
        name for name in ("ip", "unshare", "nsenter", "setpriv", "sshd", "rsync", "openssl") if not shutil.which(name)
    ]:
        return f"{', '.join(missing)} missing (packages iproute2, util-linux, openssh-server, rsync, openssl)"
    if os.stat(FOLDER).st_dev != os.stat("/").st_dev:
        return f"{FOLDER} lies on another file system than /, which the machines would not see"
    probe = "mkdir $0/t && mount -t tmpfs t $0/t && mkdir $0/t/u $0/t/w $0/t/m && " \
            "mount -t overlay o -o lowerdir=/,upperdir=$0/t/u,workdir=$0/t/w $0/t/m"  # fmt: skip
    folder = subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip()
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", probe, folder],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    shutil.rmtree(folder)
    return done.stderr.strip()


def remove_namespaces_of_the_dead() -> None:
    """Remove what tests that were killed have left: empty namespaces, since their processes died with them."""
    for path in Path("/run/netns").glob("yc*-*"):
        if not psutil.pid_exists(int(path.name[2:].partition("-")[0])):
            ip("netns", "delete", path.name)


@contextlib.contextmanager
def in_network(namespace: str) -> Iterator[None]:
    """This thread, and the threads and processes that it starts, have the network of that namespace meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(here.fileno(), CLONE_NEWNET)


def in_namespaces(namespace: str, *argv: object, **options: Any) -> "subprocess.Popen[str]":
    """Start a command as process 1 in a network; it ends with this process, and all that it started with it."""
    kinds = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    command = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", namespace, "unshare", *kinds, "--"]
    return subprocess.Popen([*command, *map(str, argv)], text=True, **options)


class Machine:
    """What an instance is made of."""

    def __init__(self, cloud: "FakeCloud", number: int, instance: dict[str, Any], keys: str) -> None:
        self.namespace, self._port, self._cloud = f"{cloud.name}-{number}", f"p{number}", cloud
        self.address: str = instance["PrivateIpAddress"]
        self.folder = cloud.folder / f"machine-{number}"
        files = self.folder / "files"
        files.mkdir(parents=True)
        (files / "authorized_keys").write_text(keys)
        shutil.copy(cloud.folder / "host_key", files / "host_key")
        variables = f"AWS_ENDPOINT_URL={ENDPOINT} UV_OFFLINE=1 OMP_NUM_THREADS=1"
        (files / "sshd_config").write_text(SSHD.format(variables=variables))
        for command, text in (("sudo", SUDO), ("shutdown", SHUTDOWN)):
            (files / command).write_text(text)
            (files / command).chmod(0o755)
        (self.folder / "disk").mkdir()
        ip("netns", "add", self.namespace)
        ip("-n", cloud.office, "link", "add", self._port, "type", "veth", "peer", "eth0", "netns", self.namespace)
        ip("-n", cloud.office, "link", "set", self._port, "up", "master", "cloud")
        ip("-n", self.namespace, "address", "add", f"{self.address}/16", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")
        ip("-n", self.namespace, "route", "add", "default", "via", GATEWAY, "dev", "eth0", "onlink")
        with open(self.folder / "log.txt", "w") as log:
            self.process = in_namespaces(
                self.namespace, "sh", "-c", BOOT, "boot", self.folder / "disk", files, FOLDER,
                f"ip-{self.address.replace('.', '-')}", cloud.flags, os.path.realpath(sys.prefix), VENVS,
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def is_running(self) -> bool:
        """Whether it has power."""
        return self.process.poll() is None

    def remove(self) -> None:
        """Cut the power; nothing on it can say goodbye."""
        self.process.kill()
        self.process.wait()
        ip("netns", "delete", self.namespace)


class FakeCloud:
    """An account at AWS, an office from which it is used, and what runs there.

    `flags` of machines that start: "slow" (/etc/slow is there), "deaf" (there is no SSH server).
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.office, self.home = name, folder, f"{name}-office", folder / "home"
        self.machines: dict[str, Machine] = {}  # by the instance's name
        self.flags = ""
        self._number, self._ends = 0, threading.Event()
        self._disks: dict[str, list[str]] = {}  # of each instance
        self._processes: list[subprocess.Popen[str]] = []
        self.home.mkdir()
        remove_namespaces_of_the_dead()
        ip("netns", "add", self.office)
        ip("-n", self.office, "link", "add", "cloud", "type", "bridge")
        for address, device in ((f"{GATEWAY}/16", "cloud"), *((f"{each}/32", "lo") for each in ENABLED_HOSTS)):
            ip("-n", self.office, "address", "add", address, "dev", device)
            ip("-n", self.office, "link", "set", device, "up")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")], check=True)
        hide = "mount --bind /dev/null /etc/resolv.conf && exec sleep infinity"
        self._first = in_namespaces(self.office, "sh", "-c", hide)
        while not (found := psutil.Process(self._first.pid).children()):
            time.sleep(0.02)
        self._inside = found[0].pid
        self.start("-c", SERVER, "-H", "0.0.0.0", "-p", PORT, log="moto")
        self._make_network_answer()
        with in_network(self.office):
            self._fill_account()
            self._watcher = threading.Thread(target=self._watch)
            self._watcher.start()
        self._fill_home()

    def start(
        self, *argv: object, folder: Path | None = None, log: str | None = None, **variables: str
    ) -> "subprocess.Popen[str]":
        """Start Python in the office, in `folder`; what it prints goes to a pipe, or to the file `log`."""
        environment = {
            "HOME": str(self.home), "PATH": f"{FOLDER / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "AWS_ENDPOINT_URL": ENDPOINT, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "OMP_NUM_THREADS": "1",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
            "SSL_CERT_FILE": str(self.folder / "network.pem"), "REQUESTS_CA_BUNDLE": str(self.folder / "network.pem"),
            "PIP_NO_BUILD_ISOLATION": "0",  # SkyPilot builds a wheel of itself for its hosts, here without an index
            "SKYPILOT_POD_MEMORY_GB_LIMIT": "7",  # one process that controls jobs, in place of one for each 2 GB
            **variables,
        }  # fmt: skip
        with contextlib.ExitStack() as stack:
            out: Any = stack.enter_context(open(self.folder / f"{log}.log", "a")) if log else subprocess.PIPE
            command = ["nsenter", "-t", str(self._inside), "-n", "-p", "-m", "-i", "-u", f"--wd={folder or self.home}"]
            process = subprocess.Popen(
                [*command, str(PYTHON), *map(str, argv)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._processes.append(process)
        return process

    def client(self, service: str, region: str = REGIONS[0]) -> Any:
        """A client of boto3, to be used `in_network`."""
        return boto3.client(service, region, endpoint_url=ENDPOINT, **CREDENTIALS)

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """All instances that are in one of these states, by default those that cost something."""
        filters = [{"Name": "instance-state-name", "Values": states or ("pending", "running", "stopping")}]
        answers = [self.client("ec2", region).describe_instances(Filters=filters) for region in REGIONS]
        return [
            each for answer in answers for reservation in answer["Reservations"] for each in reservation["Instances"]
        ]

    def _make_network_answer(self) -> None:
        """An HTTPS server at the addresses that SkyPilot asks."""
        names = ",".join(f"IP:{each}" for each in ENABLED_HOSTS)
        key, certificate = self.folder / "network.key", self.folder / "network.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=network", "-addext", f"subjectAltName={names}", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        program = f"""
import http.server, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({str(certificate)!r}, {str(key)!r})
server = http.server.ThreadingHTTPServer(("0.0.0.0", 443), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
        self.start("-c", program, log="network")

    def _fill_account(self) -> None:
        """Wait for moto; an image in each region, private subnets, and the profile that SkyPilot would make."""
        until = time.monotonic() + 60
        while True:
            try:
                self.client("ec2").describe_vpcs()
                break
            except Exception:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        self.images = {}
        for region in REGIONS:
            client = self.client("ec2", region)
            disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}
            answer = client.register_image(Name="ubuntu", RootDeviceName="/dev/sda1", BlockDeviceMappings=[disk])
            self.images[region] = answer["ImageId"]
            for subnet in client.describe_subnets()["Subnets"]:
                client.modify_subnet_attribute(SubnetId=subnet["SubnetId"], MapPublicIpOnLaunch={"Value": False})
        access = self.client("iam")
        access.create_instance_profile(InstanceProfileName="skypilot-v1")
        access.create_role(RoleName="skypilot-v1", AssumeRolePolicyDocument="{}")
        access.add_role_to_instance_profile(InstanceProfileName="skypilot-v1", RoleName="skypilot-v1")

    def _fill_home(self) -> None:
        """Credentials, SkyPilot's settings and its catalogs."""
        catalogs = self.home / ".sky/catalogs/v8"
        for name in (".aws", ".sky/catalogs/v8/aws", ".sky/catalogs/v8/common"):
            (self.home / name).mkdir(parents=True)
        keys = "".join(f"{name} = {value}\n" for name, value in CREDENTIALS.items())
        (self.home / ".aws/credentials").write_text(f"[default]\n{keys}")
        (self.home / ".aws/config").write_text(f"[default]\nregion = {REGIONS[0]}\n")
        settings = {"allowed_clouds": ["aws"],
                    "aws": {"use_internal_ips": True, "use_ssm": False},
                    "jobs": {"controller": {"consolidation_mode": True}}}  # fmt: skip
        (self.home / ".sky/config.yaml").write_text(yaml.safe_dump(settings))
        rows = ["InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
                "AvailabilityZone,Arch"]  # fmt: skip
        for instance, gpu, cores, *prices in INSTANCES:
            for region, (demand, spot) in zip(REGIONS, prices, strict=True):
                for zone in (f"{region[:2]}{region[3]}{region[-1]}-az{number}" for number in (1, 2)):
                    info = "\"{'Gpus': [{'Name': 'T4', 'MemoryInfo': {'SizeInMiB': 16384}}]}\"" if gpu else ""
                    row = [
                        instance,
                        gpu,
                        1.0 if gpu else "",
                        cores,
                        4.0 * cores,
                        info,
                        demand,
                        spot,
                        region,
                        zone,
                        "x86_64",
                    ]
                    rows.append(",".join(map(str, row)))
        tags = ("skypilot:custom-cpu-ubuntu", "skypilot:custom-gpu-ubuntu-cuda13", "skypilot:custom-gpu-ubuntu")
        tables = {
            "aws/vms.csv": rows,
            "aws/images.csv": ["Tag,Region,OS,OSVersion,ImageId,CreationDate",
                               *(f"{tag},{region},ubuntu,22.04,{image},20260101"
                                 for tag in tags for region, image in self.images.items())],
            "aws/instance_quota_mapping.csv": ["InstanceType,OnDemandInstanceCode,SpotInstanceCode"],
            "common/accelerators.csv": ["AcceleratorName,Clouds", "T4,\"['AWS']\""],
            "common/metadata.csv": ["GPU,MemoryGB,Manufacturer", "T4,16,NVIDIA"],
        }  # fmt: skip
        for name, lines in tables.items():
            (catalogs / name).write_text("\n".join(lines) + "\n")

    def _watch(self) -> None:
        """A machine for each instance that runs, none for the others."""
        while not self._ends.wait(0.5):
            running = {each["InstanceId"]: each for each in self.instances("running")}
            for name in self.machines.keys() - running.keys():
                self.machines.pop(name).remove()
                self._remove_disks(name)
            for name, instance in running.items():
                region = instance["Placement"]["AvailabilityZone"][:-1]
                if name not in self.machines:
                    self._number += 1
                    keys = self._keys(self.client("ec2", region), name)
                    self.machines[name] = Machine(self, self._number, instance, keys)
                    self._disks[name] = [each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"]]
                elif not self.machines[name].is_running():  # it has powered itself off
                    client = self.client("ec2", region)
                    attribute = "instanceInitiatedShutdownBehavior"
                    answer = client.describe_instance_attribute(InstanceId=name, Attribute=attribute)
                    ends = answer["InstanceInitiatedShutdownBehavior"].get("Value") == "terminate"
                    (client.terminate_instances if ends else client.stop_instances)(InstanceIds=[name])

    def _remove_disks(self, name: str) -> None:
        """Remove what moto leaves of a terminated instance: at AWS a root disk goes with it."""
        for region in REGIONS:
            client = self.client("ec2", region)
            for disk in client.describe_volumes()["Volumes"]:
                if disk["VolumeId"] in self._disks.get(name, ()) and disk["State"] == "available":
                    client.delete_volume(VolumeId=disk["VolumeId"])

    @staticmethod
    def _keys(client: Any, name: str) -> str:
        """The SSH keys that cloud-init would write."""
        answer = client.describe_instance_attribute(InstanceId=name, Attribute="userData")
        if not answer["UserData"]:
            return ""
        text = base64.b64decode(answer["UserData"].get("Value", "")).decode()
        return "\n".join(key for user in yaml.safe_load(text)["users"] for key in user["ssh_authorized_keys"])

    def preempt(self, instance: dict[str, Any]) -> None:
        """Take a spot instance back, without a warning."""
        region = instance["Placement"]["AvailabilityZone"][:-1]
        self.client("ec2", region).terminate_instances(InstanceIds=[instance["InstanceId"]])

    def remove(self) -> None:
        """End all that runs, and remove the namespaces."""
        self._ends.set()
        self._watcher.join()
        for machine in self.machines.values():
            machine.remove()
        self._first.kill()  # and with it all processes of the office
        self._first.wait()
        for process in self._processes:
            process.wait()
        ip("netns", "delete", self.office)


@contextlib.contextmanager
def fake_cloud(folder: Path) -> Iterator[FakeCloud]:
    """A fake cloud; skips the test, and says why, where there can be none."""
    if why := is_possible():
        pytest.skip(f"no fake cloud: {why}")
    cloud = FakeCloud(f"yc{os.getpid()}", folder)
    try:
        with in_network(cloud.office):
            yield cloud
    finally:
        cloud.remove()
