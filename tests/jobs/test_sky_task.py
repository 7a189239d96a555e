"""What SkyPilot is handed: a task, and the folder with the scripts of each host."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from cloud_jobs import prepared

from cloud_environment import in_cloud_environment, needs_skypilot
from yoloyard.common.errors import UsageError
from yoloyard.jobs.job_file import Resources
from yoloyard.jobs.prepare import Prepared
from yoloyard.jobs.setting_up import venv_name
from yoloyard.jobs.sky_task import CLOUDS, credentials, scripts, sky_name, stage, tag_of, task_of, text_of
from yoloyard.jobs.source import find_source
from yoloyard.machines.image.versions import find_tag

EXPECTED = Path(__file__).parents[1] / "data" / "sky_task.yaml"
FOLDER = Path("/home/me/.local/state/yoloyard/jobs/yoloyard-cracks")
SPOT = Resources(gpu="A100-80GB", count=4, nodes=2, spot=True, region="us-east-1", disk=500)
# Among others: what SkyPilot's own reader must take.
JOBS = {
    "spot on two hosts": prepared(SPOT, max_cost=50.0, price=9.5),
    "image": prepared(image="torch2.9-cu130", image_digest=f"sha256:{'0' * 64}"),
    "kubernetes": prepared(on="kubernetes"),
    "no GPU": prepared(Resources(gpu="none")),
    "several clouds": prepared(on="aws,gcp,azure"),
    "lambda": prepared(on="lambda"),
    "runpod": prepared(on="runpod"),
    "name": prepared(name="Risse_1.2", run="Risse_1.2-2"),
}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYOFTHETESTS0000001")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


def test_a_task_is_written_as_expected() -> None:
    """Change the file where the task is to change: it is what a user sees by --dry-run."""
    assert text_of(task_of(JOBS["spot on two hosts"], FOLDER, ["AWS_ACCESS_KEY_ID"])) == EXPECTED.read_text()


@needs_skypilot
def test_skypilot_reads_the_tasks(tmp_path: Path) -> None:
    for number, job in enumerate(JOBS.values()):
        (tmp_path / f"{number}.yaml").write_text(text_of(task_of(job, tmp_path, ["KEY"])))
    program = f"""
import json, sky
found = []
for number in range({len(JOBS)}):
    task = sky.Task.from_yaml(f"{tmp_path}/{{number}}.yaml")  # raises an error for what it doesn't know
    hosts = sorted(task.resources, key=lambda each: str(each.cloud))
    found.append([task.num_nodes, task.api_server_access, [str(each.cloud) for each in hosts], hosts[0].accelerators,
                  hosts[0].use_spot, hosts[0].labels, hosts[0].hooks[0]["events"], hosts[0].image_id])
from sky.jobs.utils import generate_managed_job_cluster_name
from sky.utils.common_utils import make_cluster_name_on_cloud
from sky.utils.registry import CLOUD_REGISTRY
from yoloyard.jobs.sweep import start_on
for cloud in {CLOUDS}:
    for job in ("yoloyard-cracks-1a2b3c", "yoloyard-" + 40 * "x" + "-1a2b3c"):
        cluster = generate_managed_job_cluster_name(job, 12)
        host = make_cluster_name_on_cloud(cluster, CLOUD_REGISTRY.from_str(cloud).max_cluster_name_length())
        assert host.startswith(start_on(cloud, job, 12)), "or a sweep would take the host of a job that runs"
from types import SimpleNamespace
from sky.exceptions import ClusterNotUpError
from sky.utils.status_lib import ClusterStatus
from yoloyard.jobs.skypilot import records
def sky_with(status):
    def get(request):
        raise ClusterNotUpError("the controller does not answer", cluster_status=status)
    return SimpleNamespace(get=get, jobs=SimpleNamespace(queue_v2=lambda **facts: None))
assert records(sky_with(None), must_know=True) == records(sky_with(ClusterStatus.INIT)) == []
try:
    records(sky_with(ClusterStatus.INIT), must_know=True)
except ClusterNotUpError:
    print("found:" + json.dumps(found))  # else a sweep would end hosts of jobs that it can't see
"""
    said = in_cloud_environment(tmp_path, "-c", program, YOLOYARD_IMAGE="registry.example/team/yoloyard", KEY="x")
    spot, image, kubernetes, no_gpu, several, *others = json.loads(said.partition("found:")[2])
    labels = {"yoloyard": sky_name(prepared().launch)}
    assert spot[:6] == [2, False, ["AWS"], {"A100-80GB": 4}, True, labels]
    assert set(spot[6]) == {"stop", "down", "preemption"}
    assert image[7] is not None
    assert kubernetes[2:5] == [["Kubernetes"], {"T4": 1}, False]
    assert no_gpu[3] is None
    assert several[2] == ["AWS", "Azure", "GCP"]
    assert [each[2] for each in others[:2]] == [["Lambda"], ["RunPod"]]
    assert not any(each[1] for each in (spot, image, kubernetes, no_gpu, several, *others)), "no host gets its token"


def test_no_secret_stands_in_the_yaml_or_the_scripts() -> None:
    job = JOBS["lambda"]
    plain, secret = credentials(job.launch)
    assert secret == {"AWS_ACCESS_KEY_ID": "KEYOFTHETESTS0000001", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests"}
    text = text_of(task_of(job, FOLDER, list(secret)) | {"envs": plain})
    assert not [value for value in secret.values() if value in text + "".join(scripts(job).values())]
    assert yaml.safe_load(text)["secrets"] == dict.fromkeys(secret), "SkyPilot gets them apart"


def test_in_its_own_cloud_a_host_has_a_role_and_gets_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials(prepared(on="aws").launch) == ({}, {})
    assert credentials(prepared(on="gcp", backup="gs://factory/runs", data_source=None).launch) == ({}, {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio.example")  # which is none of AWS
    plain, secret = credentials(prepared(on="aws").launch)
    assert plain == {"AWS_ENDPOINT_URL": "https://minio.example"}
    assert "AWS_SECRET_ACCESS_KEY" in secret


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (prepared(on="vast"), "--on vast: hosts there can't be tagged and found again"),
        (prepared(on="aws,nowhere"), "--on nowhere: .* name one of aws, gcp"),
        (prepared(Resources()), "gpu is missing: `yoloyard plan` recommends one"),
        (prepared(Resources(gpu="T4", region="us-east-1"), on="aws,gcp"), "region us-east-1 is of one cloud"),
        (prepared(Resources(gpu="T4", nodes=2), on="runpod"), "SkyPilot starts no job of several hosts on runpod"),
        (dataclasses.replace(prepared(), release="sudo poweroff"), "--release is for hosts by ssh"),
        (prepared(Resources(gpu="P100"), image=""), None),
    ],
)
def test_what_is_refused(job: Prepared, message: str | None) -> None:
    if message is None:
        assert task_of(job, FOLDER)["resources"]["accelerators"] == "P100:1"
        return
    with pytest.raises(UsageError, match=message):
        task_of(job, FOLDER)


def test_a_store_that_hosts_cannot_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(backup: str) -> str:
        with pytest.raises(UsageError) as raised:
            credentials(prepared(on="aws", backup=backup, data_source=None).launch)
        return str(raised.value)

    assert "is a folder here" in refusal("file:///runs")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in refusal("gs://factory/runs")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY", raising=False)
    assert "set AZURE_STORAGE_ACCOUNT_KEY" in refusal("az://factory/runs")


def test_a_host_may_cost_no_more_than_a_limit_counts_with() -> None:
    assert task_of(prepared(max_cost=20.0, price=0.6), FOLDER)["resources"]["max_hourly_cost"] == 0.6
    assert "max_hourly_cost" not in task_of(prepared(price=0.6), FOLDER)["resources"]


def test_names_are_ones_that_all_clouds_take_and_differ_where_jobs_differ() -> None:
    names = ["cracks", "Cracks", "cracks.2", "cracks-2", "x" * 40]
    launches = [prepared(name=name).launch for name in names]
    launches.append(prepared(backup="s3://another/project").launch)
    found = [sky_name(launch) for launch in launches]
    assert all(name.startswith("yoloyard-cracks-") for name in (found[0], found[-1]))
    assert len(set(found)) == len(launches)
    assert all(len(name) <= 63 and name.replace("-", "").isascii() and name == name.lower() for name in found)


def test_the_tag_of_a_host_nobody_has_seen_needs_the_oldest_driver() -> None:
    assert tag_of(prepared(Resources(gpu="none")).launch).name == "cpu"
    assert tag_of(prepared(Resources(gpu="A100-80GB")).launch).name == "torch2.8-cu128"
    assert tag_of(prepared(Resources(gpu="P100")).launch).name == "torch2.8-cu126"
    assert tag_of(prepared(image="torch2.9-cu130").launch).name == "torch2.9-cu130"


def test_the_folder_sets_a_host_up(tmp_path: Path) -> None:
    """The commit with its patch, this package, and an environment, which is ready on this host."""
    repository, home = tmp_path / "repository", tmp_path / "home"
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    (repository / "model.py").write_text("x = 1\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)
    (repository / "model.py").write_text("x = 2\n")
    source = find_source(repository, [repository / "job.lock.json"])
    job = prepared(Resources(gpu="none"), source, commit=source.commit)
    stage(job, home / "yoloyard-job")
    environment = home / ".yoloyard/venvs" / venv_name(find_tag("cpu"))
    (environment / "bin").mkdir(parents=True)
    (environment / "whole").touch()
    (environment / "bin/python").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@ $PYTHONPATH"\n')
    (home / ".local/bin").mkdir(parents=True)
    (home / ".local/bin/uv").write_text("#!/bin/sh\necho /usr/bin/python3\n")  # SkyPilot brings it
    for program in (environment / "bin/python", home / ".local/bin/uv"):
        program.chmod(0o755)
    variables = {"HOME": str(home), "PATH": os.environ["PATH"]}
    task = task_of(job, home / "yoloyard-job")
    for _ in range(2):  # SkyPilot may run it again on the same host
        subprocess.run(["bash", "-c", task["setup"]], env=variables, check=True)
    assert (home / "yoloyard-job/source/model.py").read_text() == "x = 2\n"
    said = subprocess.run(
        ["sh", home / "yoloyard-job/run.sh"], env=variables, check=True, capture_output=True, text=True
    )
    assert said.stdout == f"-m yoloyard.jobs.node {home}/yoloyard-job {home}/yoloyard-job/package\n"
    assert (home / "yoloyard-job/package/yoloyard/jobs/node/guard.sh").exists()
    assert json.loads((home / "yoloyard-job/launch.json").read_text())["commit"] == source.commit


def test_a_task_shows_the_log_and_ends_as_its_guard_does(tmp_path: Path) -> None:
    folder = tmp_path / "yoloyard-job"
    folder.mkdir()
    (folder / "guard.sh").write_text("echo from the log > log.txt\nexit 143\n")
    (folder / "spot.sh").write_text("exec sleep 100\n")
    done = subprocess.run(
        ["bash", "-c", task_of(prepared(), FOLDER)["run"]],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in task_of(prepared(), FOLDER)["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert "from the log" in done.stdout, "and nothing is left that holds its output open"


def test_before_a_host_is_taken_away_its_guard_may_save(tmp_path: Path) -> None:
    folder = tmp_path / "yoloyard-job"
    folder.mkdir()
    hook = ["sh", "-c", task_of(prepared(), FOLDER)["config"]["hooks"][0]["run"]]
    variables = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run(hook, env=variables, check=True)  # a job that has not begun keeps nobody waiting
    program = "trap 'sleep 0.2; echo saved > saved; exit' TERM; echo $$ > guard.pid; while :; do sleep 0.05; done"
    with subprocess.Popen(["sh", "-c", program], cwd=folder) as guard:
        while not (folder / "guard.pid").exists() or not (folder / "guard.pid").read_text():
            time.sleep(0.01)
        with subprocess.Popen(hook, env=variables) as waiting:
            guard.wait(timeout=10)
            assert (folder / "saved").exists()
            assert waiting.wait(timeout=10) == 0


@pytest.mark.parametrize(
    "answer",
    [
        """*latest/api/token) echo t ;; *t*spot/instance-action) echo '{"action": "terminate"}' ;;""",
        "*Google*instance/preempted) echo TRUE ;;",
        """*scheduledevents*) echo '{"Events": [{"EventType": "Preempt"}]}' ;;""",
    ],
    ids=["aws", "gcp", "azure"],
)
def test_a_spot_host_that_is_to_be_taken_back_saves(answer: str, tmp_path: Path) -> None:
    """At the second look: before, its cloud says that there is nothing."""
    assert "spot.sh" not in scripts(prepared()), "others are not taken back"
    programs = {"curl": f'[ -e looked ] || exit 22\ncase "$*" in {answer} *) exit 22 ;; esac',
                "sleep": "[ ! -e slept ] || touch looked; touch slept"}  # fmt: skip
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with subprocess.Popen(["/bin/sleep", "100"]) as guard:
        (tmp_path / "guard.pid").write_text(f"{guard.pid}")
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(
            ["sh", "-c", scripts(JOBS["spot on two hosts"])["spot.sh"]], env=variables, cwd=tmp_path, check=True
        )
        assert guard.wait(timeout=10) == -signal.SIGTERM
    assert (tmp_path / "looked").exists()


def test_a_host_switches_itself_off_if_skypilot_does_not_take_it_back(tmp_path: Path) -> None:
    (tmp_path / "shutdown").write_text('#!/bin/sh\necho "$@" > asked\n')
    (tmp_path / "shutdown").chmod(0o755)
    release = ["sh", "-c", scripts(prepared())["release.sh"]]
    subprocess.run(release, env={"PATH": f"{tmp_path}"} | {}, cwd=tmp_path, check=True, executable="/bin/sh")
    assert (tmp_path / "asked").read_text() == "-h +15\n"
    done = subprocess.run(release, env={"PATH": "/nowhere"}, check=True, executable="/bin/sh", stdout=subprocess.PIPE)
    assert b"SkyPilot has to" in done.stdout, "a guard would try a release that failed for ever"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_all_scripts_are_right_for_sh(cloud: str, tmp_path: Path) -> None:
    job = prepared(on=cloud)
    task = task_of(job, FOLDER)
    for text in (*scripts(job).values(), task["setup"], task["run"], task["config"]["hooks"][0]["run"]):
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
