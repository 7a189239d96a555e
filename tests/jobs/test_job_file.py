"""job.yaml: what it may say, and what is said of a mistake in it."""

from pathlib import Path
from typing import Any

import pytest

from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.flags import given
from yoloyard.cli.main import app
from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import checked_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.jobs.job_file import Job, Limits, Resources, read_job, settings_of_flags

WHOLE = """\
name: factory-7
train:
  data: ../data/factory.yaml
  model: yolo11s
  epochs: 1e2
  lr0: 1e-3
  batch-size: 32
  cos_lr: yes
  classes: [0123, no]
image: pytorch-cuda-v2.8
resources: {gpu: RTX 4090, count: 2, nodes: 2, spot: yes, region: eu-west-1, cloud: aws, disk: 200}
data: s3://bucket/factory/
backup: s3://bucket/jobs/factory
limits: {max_hours: 8, max_cost: 1e1, idle_minutes: 30}
on: aws
"""


def job_of(folder: Path, text: str, name: str = "job.yaml") -> Job:
    (folder / name).write_text(text, encoding="utf-8")
    return read_job(folder / name)


def mistake_in(folder: Path, text: str) -> str:
    """What is said of a file, without its folder."""
    with pytest.raises(UsageError) as caught:
        job_of(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_every_key_has_its_value(tmp_path: Path) -> None:
    job = job_of(tmp_path, WHOLE)
    assert job.name == "factory-7"
    assert job.train == {
        "data": str(tmp_path.parent / "data" / "factory.yaml"),
        "model": "yolo11s",
        "epochs": 100,
        "lr0": 0.001,
        "batch": 32,
        "cos_lr": True,
        "classes": "0123,no",
    }
    assert job.image == "torch2.8-cu128"  # not its alias
    assert job.resources == Resources("RTX4090", 2, 2, True, "eu-west-1", "aws", 200)
    assert (job.data, job.backup, job.on) == ("s3://bucket/factory", "s3://bucket/jobs/factory", "aws")
    assert job.limits == Limits(8.0, 10.0, 30.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {data: a}\nbackups: s3://a/b", "job.yaml:2:1: unknown key 'backups'; did you mean 'backup'?"),
        ("train: {data: a}\nresources:\n  gpus: T4", "job.yaml:3:3: unknown key of resources 'gpus'; did you mean"),
        ("train: {data: a, epoch: 3}", "job.yaml:1:18: train: unknown setting 'epoch'; did you mean 'epochs'?"),
        ("train: {data: a, epochs: many}", "job.yaml:1:18: train: 'epochs' must be a whole number, not 'many'"),
        ("train: {data: a, batch: 1, batch_size: 2}", "job.yaml:1:8: train: 'batch' is said twice"),
        ("train: {data: a, epochs: 1, epochs: 2}", "job.yaml:1:29: 'epochs' is said already in line 1"),
        ("train: {data: a, name: b}", "job.yaml:1:18: train: 'name' is the job's own: the job's `name:` is its name"),
        ("train: --data a --resume", "job.yaml:1:8: train: 'resume' is the job's own"),
        ("train: --data a --epoch 3", "job.yaml:1:8: train: unknown setting 'epoch'; did you mean 'epochs'?"),
        ("train: --data a --epochs", "job.yaml:1:8: train: --epochs needs a value"),
        ("train: --data 'a", "job.yaml:1:8: train: No closing quotation"),
        ("train: [a]", "job.yaml:1:8: 'train' must hold lines such as 'data: ...'"),
        ("train: {epochs: 3}", "job.yaml:1:8: 'train' has no data"),
        ("train: {data: a, time: 2026-13-45}", "job.yaml:1:24: no value can be made of this (month must"),
        ("train: {data: a, model: !x y}", "job.yaml:1:25: no value can be made of this (could not"),
        ("train: {data: a, lr0: !!float x}", "job.yaml:1:23: no value can be made of this (could not convert"),
        ("train: {data: a}\n? [b]\n: c", "job.yaml:2:3: a key must be one of name, train, image"),
        ("train: {<<: a}", "job.yaml:1:9: train: unknown setting '<<'"),
        ("image: cpu", "job.yaml has no `train:`"),
        ("train: {data: a}\nlimits: {max_hours: 8h}", "job.yaml:2:21: 'limits.max_hours' must be a number above 0"),
        ("train: {data: a}\nlimits: {max_hours: 8..}", "job.yaml:2:21: 'limits.max_hours' must be a number above 0"),
        ("train: {data: a}\nlimits: {max_cost: -1}", "job.yaml:2:20: 'limits.max_cost' must be a number above 0"),
        ("train: {data: a}\nlimits: {max_cost: .inf}", "job.yaml:2:20: 'limits.max_cost' must be a number above 0"),
        ("train: {data: a}\nresources: {count: 0}", "'resources.count' must be a whole number above 0"),
        ("train: {data: a}\nresources: {nodes: 1.5}", "'resources.nodes' must be a whole number above 0"),
        ("train: {data: a}\nresources: {spot: 1}", "job.yaml:2:19: 'resources.spot' must be true or false, not '1'"),
        ("train: {data: a}\nresources: {gpu: RTX 4091}", "job.yaml:2:18: 'resources.gpu': unknown GPU 'RTX 4091';"),
        ("train: {data: a}\nresources: {gpu: [T4]}", "job.yaml:2:18: 'resources.gpu' must be a text"),
        ("train: {data: a}\nimage: torch2.8", "job.yaml:2:8: there is no tag torch2.8; did you mean torch2.8-cu1"),
        ("train: {data: a}\nbackup: s3:/bucket", "job.yaml:2:9: 'backup': this address of a store can't be used"),
        ("train: {data: a}\nbackup: s3://key@bucket/x", "job.yaml:2:9: 'backup': this address of a store can't be"),
        ("train: {data: a}\non: me@host", "job.yaml:2:5: --on me@host is not an address; it looks like ssh://user@host"),
        ("train: {data: a}\nname: ../x", "job.yaml:2:7: 'name' names folders and hosts"),
        ("train: {data: a}\nname: job", "job.yaml:2:7: 'name' can't be 'job': BACKUP/job has other things"),
        ("train:\n\tdata: a", "job.yaml:2:1: not valid YAML in UTF-8: found character '\\t'"),
        ("- train", "job.yaml:1:1: a job file holds lines such as 'name: ...'; there are: name, train, image"),
        ("", "job.yaml is empty; yoloyard job init writes one"),
        ("# nothing\n", "job.yaml is empty"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    assert said in mistake_in(tmp_path, text)


def test_a_mistake_never_shows_a_secret(tmp_path: Path) -> None:
    assert "topsecret" not in mistake_in(tmp_path, "train: {data: a}\nbackup: s3://key:topsecret@bucket/x")


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*job.yaml; yoloyard job init writes one"):
        read_job(tmp_path / "job.yaml")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_job(tmp_path)
    (tmp_path / "job.yaml").write_bytes(b"train: {data: \xe9\xff.yaml}")
    with pytest.raises(UsageError, match="not valid YAML in UTF-8"):
        read_job(tmp_path / "job.yaml")


def test_a_byte_order_mark_and_anchors_are_understood(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(
        b"\xef\xbb\xbfresources: &own {gpu: T4, count: 2}\n"
        b"train: {data: a.yaml, epochs: 4}\n"
        b"limits:\n  max_hours: &hours 5\n  max_cost: *hours\n"
    )
    job = read_job(tmp_path / "job.yaml")
    assert (job.train["epochs"], job.limits.max_cost, job.resources.count) == (4, 5.0, 2)


def test_what_is_empty_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    job = job_of(tmp_path, "train: {data: a.yaml}\nresources:\nbackup:\nlimits: {max_hours: }\n")
    assert (job.resources, job.backup, job.limits) == (Resources(), None, Limits())


def test_paths_start_from_the_file_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    train = "train: {data: ~/set/data.yaml, model: ../net.py:Net, transform: t.py:f, weights: 's3://b/w.safetensors'}"
    job = job_of(tmp_path, f"{train}\ndata: ~/set\n")
    assert job.train == {
        "data": "/home/me/set/data.yaml",
        "model": f"{tmp_path.parent}/net.py:Net",
        "transform": f"{tmp_path}/t.py:f",
        "weights": "s3://b/w.safetensors",
    }
    assert job.data == "/home/me/set"


@pytest.mark.parametrize(
    ("folder", "file", "name"),
    [
        ("factory", "job.yaml", "factory"),
        ("factory", "night run.yaml", "night-run"),
        ("工厂", "job.yaml", "training"),
        ("data", "job.yaml", "data-1"),
    ],
)
def test_a_job_without_a_name_has_that_of_its_file_or_folder(folder: str, file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    assert job_of(tmp_path / folder, "train: {data: a}", file).name == name


@pytest.mark.parametrize("train", ["--data a --imgsz 512x2048", "{data: a, imgsz: [512, 2048]}"])
def test_a_height_and_a_width_stand_as_json_keeps_them(train: str, tmp_path: Path) -> None:
    assert job_of(tmp_path, f"train: {train}").train["imgsz"] == "512x2048"


def test_a_settings_file_is_read_and_what_stands_beside_it_wins(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text("epochs: 7\nimgsz: 320\n", encoding="utf-8")
    job = job_of(tmp_path, "train: --config args.yaml --data a.yaml --epochs 9")
    assert (job.train["epochs"], job.train["imgsz"]) == (9, 320)
    (tmp_path / "args.yaml").write_text("nodes: 2\n", encoding="utf-8")
    assert "'nodes' is the job's own: write `resources: {nodes: 2}`" in mistake_in(
        tmp_path, "train: {data: a.yaml, config: args.yaml}"
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--data", "a.yaml", "--epochs", "3", "--imgsz=320"],
        ["data=a.yaml", "batch_size=8", "--img", "640"],
        ["--no-amp", "--cos-lr", "--rect", "false", "--data=a.yaml"],
        ["--cache", "--data", "a.yaml", "--cfg", "yolo11s"],
        ["--device", "0,1", "--lr0", "1e-3", "--close-mosaic", "0"],
    ],
)
def test_flags_mean_what_they_mean_to_train(flags: list[str]) -> None:
    _, bound, _ = app.parse_args(normal_arguments(["train", *flags], app), exit_on_error=False, print_error=False)
    by_train: dict[str, Any] = checked_overrides(TrainConfig, given(bound.kwargs))
    assert checked_overrides(TrainConfig, settings_of_flags(flags)) == by_train
