"""From a job file to a launch: the same from each clone, with what differs from the last one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from user_repository import git, make_repository

from yoloyard.common.errors import UsageError
from yoloyard.jobs import prepare as prepare_module
from yoloyard.jobs.job_file import read_job
from yoloyard.jobs.prepare import Prepared, differences, keep, lock_of, next_run, note_of, prepare, read_lock

OF_A_MACHINE = ("time", "host")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("YOLOYARD_IMAGE", raising=False)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "one")


def prepared(job_file: Path) -> Prepared:
    return prepare(read_job(job_file))


def test_a_launch_says_all_that_decides_the_run(job_file: Path) -> None:
    launch = prepared(job_file).launch
    assert launch.train == {"data": "../data.yaml", "model": "my_model.py:build", "epochs": 3}
    assert (launch.name, launch.run, launch.on) == ("a", "a", "ssh://me@host")
    assert launch.commit == git(job_file.parent, "rev-parse", "HEAD")
    assert launch.image == "torch2.8-cu128"
    assert str(launch.image_digest).startswith("locks:")
    assert str(launch.data).startswith("sha256:")
    assert (launch.patch, launch.gpus, launch.nodes) == (None, 0, 1)


def test_two_clones_give_the_same_launch(job_file: Path, tmp_path: Path) -> None:
    top = job_file.parents[1]
    git(tmp_path, "clone", "--quiet", str(top), "two")
    shutil.copytree(top / "demo", tmp_path / "two" / "demo")
    first = dataclasses.asdict(prepared(job_file).launch)
    second = dataclasses.asdict(prepared(tmp_path / "two" / "jobs" / "a.yaml").launch)
    assert {name for name in first if first[name] != second[name]} <= {*OF_A_MACHINE}


def test_what_differs_from_the_last_launch_is_said(job_file: Path) -> None:
    first = prepared(job_file)
    assert first.differences == ()
    keep(first.launch, job_file)
    same = prepared(job_file)
    assert same.differences == ()  # the lock itself is no change
    assert same.launch.patch is None
    text = job_file.read_text().replace("epochs: 3", "epochs: 4\n  lr0: 0.1").replace("cu128", "cu126")
    job_file.write_text(text)
    label = next((job_file.parents[1] / "demo" / "labels" / "train").iterdir())
    label.write_text("")
    git(job_file.parent, "commit", "--quiet", "--all", "-m", "Second")
    lines = prepared(job_file).differences
    assert [line.partition(":")[0] for line in lines] == [
        "commit", "image", "image_digest", "data", "train.epochs", "train.lr0",
    ]  # fmt: skip
    assert "image: torch2.8-cu128 -> torch2.8-cu126" in lines
    assert "train.epochs: 3 -> 4" in lines
    assert "train.lr0: nothing -> 0.1" in lines


def test_locks_are_no_difference_committed_or_not(job_file: Path) -> None:
    keep(prepared(job_file).launch, job_file)
    other = job_file.with_name("b.yaml")
    other.write_text(job_file.read_text())
    git(job_file.parent, "add", ".")
    git(job_file.parent, "commit", "--quiet", "-m", "The lock, and another job")
    (line,) = prepared(job_file).differences
    assert line.startswith("commit: ")  # b.yaml is new
    keep(prepared(job_file).launch, job_file)
    keep(prepared(other).launch, other)
    git(job_file.parent, "add", "a.lock.json")
    git(job_file.parent, "commit", "--quiet", "-m", "The lock")
    assert prepared(job_file).differences == ()
    assert prepared(job_file).launch.patch is None  # b.lock.json is not committed


def test_a_launch_is_noted_here_and_beside_the_job_file(job_file: Path) -> None:
    launch = prepared(job_file).launch
    keep(launch, job_file)
    assert lock_of(job_file).name == "a.lock.json"
    assert read_lock(job_file) == launch
    assert note_of("a").read_bytes() == lock_of(job_file).read_bytes()


def test_a_damaged_lock_is_said(job_file: Path) -> None:
    lock_of(job_file).write_text("{")
    with pytest.raises(UsageError, match=r"a\.lock\.json can't be read .*: git checkout brings it back, or remove it"):
        prepared(job_file)


def test_a_launch_goes_on_with_the_last_run(job_file: Path) -> None:
    launch = prepared(job_file).launch
    keep(dataclasses.replace(launch, run=next_run(launch, launch.run)), job_file)
    assert prepared(job_file).launch.run == "a-2"
    assert next_run(launch, "a-2") == "a-3"


def test_the_image_that_a_host_got_is_taken_again(job_file: Path) -> None:
    job_file.write_text(job_file.read_text().replace("image: torch2.8-cu128\n", ""))
    launch = prepared(job_file).launch
    assert (launch.image, launch.image_digest) == ("", None)
    keep(dataclasses.replace(launch, image="torch2.8-cu126"), job_file)
    assert prepared(job_file).launch.image == "torch2.8-cu126"


def test_the_price_of_a_host_is_said_once(job_file: Path) -> None:
    keep(prepare(read_job(job_file), price=0.45).launch, job_file)
    job_file.write_text(job_file.read_text() + "limits: {max_cost: 3}\n")
    assert (prepared(job_file).launch.price, prepared(job_file).launch.price_source) == (0.45, "--price")
    with pytest.raises(UsageError, match="max_cost needs the price of a host"):
        prepare(read_job(job_file), "ssh://me@another")


def test_the_digest_of_an_image_follows_from_what_it_is_made_of(job_file: Path) -> None:
    digest = prepared(job_file).launch.image_digest
    tag = prepare_module.find_tag("torch2.8-cu128")
    assert prepare_module.image_digest(tag) == digest
    assert prepare_module.image_digest(dataclasses.replace(tag, torch="2.8.1")) != digest


def test_the_digest_of_a_registry_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "skopeo").write_text(f'#!/bin/sh\necho "$@" > {asked}\necho sha256:12ab\n')
    for name in ("docker", "skopeo"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("YOLOYARD_IMAGE", "registry.example/team/yoloyard")
    assert prepare_module.image_digest(prepare_module.find_tag("cpu")) == "sha256:12ab"
    assert "docker://registry.example/team/yoloyard:cpu-runtime" in asked.read_text()


def test_a_file_that_does_not_go_along_is_refused(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").touch()
    text = job_file.read_text()
    job_file.write_text(text.replace("../my_model.py", "../../elsewhere.py"))
    with pytest.raises(UsageError, match=r"train\.model: .*/elsewhere\.py is no part of the repository"):
        prepared(job_file)
    job_file.write_text(text.replace("../my_model.py", "../none.py"))
    with pytest.raises(UsageError, match=r"train\.model: there is no file .*/none\.py"):
        prepared(job_file)


def test_each_gpu_of_a_host_has_a_process(job_file: Path) -> None:
    text = job_file.read_text()
    job_file.write_text(text.replace("{gpu: none}", "{gpu: RTX 4090, count: 4}"))
    assert prepared(job_file).launch.train["processes"] == 4
    job_file.write_text(text.replace("{gpu: none}", "{gpu: none, count: 4}"))
    assert "processes" not in prepared(job_file).launch.train


def test_what_can_not_be_launched_is_refused(job_file: Path) -> None:
    text = job_file.read_text()
    job_file.write_text(text.replace("{gpu: none}", "{spot: true}"))
    with pytest.raises(UsageError, match="spot hosts are taken away at any time"):
        prepared(job_file)
    job_file.write_text(text.replace("on: ssh://me@host\n", ""))
    with pytest.raises(UsageError, match="doesn't say where it runs: --on ssh://user@host"):
        prepared(job_file)


def test_what_is_no_other_result_is_no_difference(job_file: Path) -> None:
    launch = prepared(job_file).launch
    assert differences(launch, dataclasses.replace(launch, run="a-9", host="other", time="later")) == []


def test_the_price_of_a_cloud_is_that_of_its_cheapest_host(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    catalog = tmp_path / ".sky" / "catalogs" / "v8" / "aws" / "vms.csv"
    catalog.parent.mkdir(parents=True)
    columns = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,AvailabilityZone"
    rows = ["dear,T4,1,4,16,0.9,0.3,east,east-1", "good,T4,1,4,16,0.5,0.2,west,west-1", "two,T4,2,8,32,0.1,0.1,west,w"]
    catalog.write_text("\n".join([columns, *rows]))
    text = job_file.read_text().replace("{gpu: none}", "{gpu: t4}").replace("on: ssh://me@host", "on: aws")
    job_file.write_text(text + "limits: {max_cost: 3}\n")
    launch = prepared(job_file).launch
    assert (launch.gpu, launch.price) == ("T4", 0.5)
    assert str(launch.price_source).startswith("aws good in west, 20")
    job_file.write_text(text.replace("t4}", "t4, region: east}"))
    assert prepared(job_file).launch.price == 0.9
    job_file.write_text(text.replace("t4}", "t4, spot: true}") + "backup: s3://factory/a\n")
    assert prepared(job_file).launch.price == 0.3, "so that another region can replace it, and no cost is too low"
    job_file.write_text(text.replace("t4}", "t4, region: north}") + "limits: {max_cost: 3}\n")
    with pytest.raises(UsageError, match="max_cost needs the price of a host, which no table knows: --price"):
        prepared(job_file)
