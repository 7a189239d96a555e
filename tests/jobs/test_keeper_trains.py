"""The keeper with the real training: its records, its limits, and a second host that goes on."""

from pathlib import Path

import pytest
from keeping import MadeUpClock, job_folder, state_of

from commands import TINY_NETWORK
from object_store import BUCKET, Proxy
from yoloyard.commands.runs import document, find_run
from yoloyard.common.run_folder import read_run
from yoloyard.demo.write import write_demo
from yoloyard.jobs.bill import bill
from yoloyard.jobs.node.keeper import keep
from yoloyard.storage.copies import Copies
from yoloyard.storage.fetch import fetch_run

TRAIN = {
    "model": TINY_NETWORK, "imgsz": 64, "batch": 4, "amp": False, "tensorboard": False, "device": "cpu", "workers": 0,
    "epochs": 15,
}  # fmt: skip


@pytest.mark.slow
def test_a_limit_on_one_host_and_the_end_on_another(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    backup = f"s3://{BUCKET}/line"
    data = write_demo(tmp_path / "set", seed=3, train=14, val=6, size=96)
    train = TRAIN | {"data": str(data)}
    first = job_folder(tmp_path / "job", "", train=train, backup=backup, max_hours=1, gpus=0)

    def holds() -> bool:  # hours pass after the first epoch, until the training is asked to end
        is_saving = (first / "keeper.json").exists() and state_of(first)["state"] == "saving"
        return is_saving or not (first / "runs/line/metrics.jsonl").exists()

    clock = MadeUpClock(3600)
    clock.holds = holds
    monkeypatch.setenv("YOLOYARD_ATTEMPT", "first")
    assert keep(first, clock) == 0
    assert state_of(first)["state"] == "limit"
    assert read_run(first / "runs/line").state == "interrupted"
    newest = Copies(f"{backup}/line").read_manifests()[-1]
    assert {"job.json", "checkpoints/last/state.json", "metrics.jsonl"} <= newest.files.keys()

    monkeypatch.setenv("YOLOYARD_ATTEMPT", "second")
    second = job_folder(tmp_path / "other", "", train=train, backup=backup, max_hours=9, gpus=0, time="2026-12-01")
    assert keep(second, MadeUpClock(1)) == 0
    assert state_of(second)["reason"] == "epoch 15 was the last, and the report is written"
    assert [each["epoch"] for each in read_run(second / "runs/line").records] == [*range(1, 16)]

    folder = fetch_run(f"{backup}/line", None, tmp_path / "fetched")  # as on the laptop
    found = bill(read_run(folder))
    assert found["attempts"] == 2
    assert found["cost"] == pytest.approx(2.0 * found["hours"])
    assert found["hours"] == pytest.approx(state_of(second)["seconds"] / 3600)
    assert 0 < found["utilisation"] < 1
    assert document(find_run("line", folder.parent), is_whole=True)["bill"]["cost"] == found["cost"]
