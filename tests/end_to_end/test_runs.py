"""`yoloyard runs`: the state of a run and what says so, one run in full, several on a page."""

import json
import os
import shutil
import signal
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from commands import TINY, Command, start
from notified import SECRET, Server
from yoloyard import common
from yoloyard.common.files import RunLock
from yoloyard.common.run_folder import RunFolder, read_run


def listed(yoloyard: Command) -> dict[str, dict[str, Any]]:
    code, out, err = yoloyard("runs", "--json")
    assert (code, err) == (0, "")
    return {run["name"]: run for run in json.loads(out)["runs"]}


def change_status(folder: Path, **values: object) -> None:
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_run_that_is_over_is_in_the_table_with_its_figures(run_folder: Path, yoloyard: Command) -> None:
    (Path("runs") / "val").mkdir()  # holds no run
    run = listed(yoloyard)["line"]
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert (run["state"], run["epoch"], run["epochs"], run["alerts"]) == ("finished", 2, 2, [])
    assert run["best"]["value"] == max(record["val/map50_95"] for record in records)
    assert run["seconds"] > sum(record["speed/seconds"] for record in records)
    assert run["bytes"] > (run_folder / "report.html").stat().st_size
    code, out, _ = yoloyard("runs")
    assert code == 0
    assert "finished" in out
    assert "2/2" in out
    code, out, _ = yoloyard("runs", "--project", "nowhere")
    assert (code, out) == (0, "no run is in nowhere/\n")


def test_a_run_goes_on_while_its_lock_is_held_and_was_killed_otherwise(
    run_folder: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_status(run_folder, state="running", pid=4711)
    run = listed(yoloyard)["line"]
    assert run["state"] == "interrupted"
    assert run["reason"].startswith("its process is gone (process 4711 on ")
    with RunLock() as lock:
        lock.take(run_folder)
        assert listed(yoloyard)["line"]["state"] == "running"
        change_status(run_folder, state="finished")  # as it is while a resumed run makes its first steps
        assert listed(yoloyard)["line"]["state"] == "running"
    change_status(run_folder, state="running", host="elsewhere", updated="2999-01-01T00:00:00+00:00")
    assert listed(yoloyard)["line"]["state"] == "running"  # its lock may be invisible from here
    change_status(run_folder, updated="2020-01-01T00:00:00+00:00")
    assert listed(yoloyard)["line"]["state"] == "interrupted"
    with RunLock() as lock:
        lock.take(run_folder)
        assert ", silent for " in listed(yoloyard)["line"]["reason"]
    monkeypatch.setattr(common.run_folder, "is_locked", lambda folder: None)  # a disk without locks
    assert listed(yoloyard)["line"]["state"] == "interrupted"
    assert listed(yoloyard)["line"]["reason"].endswith("ago; whether it is there can't be seen from here")


def test_of_a_run_of_an_older_version_its_files_tell(run_folder: Path, yoloyard: Command) -> None:
    (run_folder / "status.json").unlink()
    (run_folder / "last_validation.json").unlink()
    run = listed(yoloyard)["line"]
    assert (run["state"], run["reason"], run["epoch"]) == ("finished", "its report is written", 2)
    assert run["seconds"] > 0
    (run_folder / "report.html").unlink()
    assert listed(yoloyard)["line"]["reason"] == "there is a checkpoint and no report"
    assert "yoloyard train --resume runs/line" in yoloyard("runs", "show", "line")[1]
    with RunLock() as lock:
        lock.take(run_folder)
        assert listed(yoloyard)["line"]["state"] == "running"


def test_what_is_damaged_is_named_and_the_rest_is_shown(run_folder: Path, yoloyard: Command) -> None:
    metrics = run_folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '[1]\n{"epoch": 3, "train/box": NaN, "val/map50_95": NaN}\n{"epo')
    (run_folder / "status.json").write_text("{")
    (run_folder / "backup.json").write_text('{"pid": 1')
    code, out, err = yoloyard("runs", "--json")
    assert code == 0
    (run,) = json.loads(out)["runs"]
    assert (run["state"], run["epoch"], run["best"]["epoch"] <= 2) == ("finished", 3, True)
    lines = err.splitlines()
    assert [line.split(": ")[2].split(" can't be read")[0] for line in lines] == [
        "status.json", "metrics.jsonl:3 is no line of figures", "metrics.jsonl:5 is no line of figures", "backup.json",
    ]  # fmt: skip
    for content in ("epochs: {a: 1}\nbest_by: [x]\n3: 4\n", "- 1\n", ""):  # of another program
        (run_folder / "config.yaml").write_text(content)
        assert yoloyard("runs")[0] == yoloyard("runs", "show", "line")[0] == 0
    (run_folder / "config.yaml").write_text("a: [")
    (run_folder / "status.json").write_text('{"state": "running"}')
    code, out, err = yoloyard("runs")
    assert code == 0
    assert "config.yaml can't be read" in err + out
    assert "status.json lacks epoch" in err + out


def test_alerts_and_the_backup_are_shown(run_folder: Path, yoloyard: Command) -> None:
    metrics = run_folder / "metrics.jsonl"
    alert = {"epoch": 1, "alert": "starved", "message": "waits for data", "evidence": "60 %", "remedy": "more workers"}
    metrics.write_text(metrics.read_text() + json.dumps(alert) + "\n")
    ended = datetime.fromisoformat(json.loads((run_folder / "status.json").read_text())["updated"])
    since = (ended - timedelta(seconds=750)).isoformat()
    backup = {"address": "s3://bucket/line", "epoch": 2, "waiting_since": since, "error": None}
    (run_folder / "backup.json").write_text(json.dumps(backup))
    run = listed(yoloyard)["line"]
    assert (run["alerts"], run["epoch"]) == (["epoch 1: waits for data (60 %); more workers"], 2)
    assert run["backup"] == {"address": "s3://bucket/line", "epoch": 2, "behind_seconds": 750.0, "error": None}
    code, out, err = yoloyard("runs", "show", "line")
    assert (code, err) == (0, "")
    assert run["alerts"][0] in " ".join(out.split())
    assert "epoch 2, 12.5 min behind" in out
    (run_folder / "backup.json").write_text(json.dumps(backup | {"epoch": None}))
    assert "none yet, 12.5 min behind" in yoloyard("runs", "show", "line")[1]


def test_a_run_is_found_by_name_and_by_folder(run_folder: Path, yoloyard: Command) -> None:
    for name in ("line", run_folder, run_folder.absolute()):
        assert yoloyard("runs", "show", name)[0] == 0
    assert yoloyard("runs", "show", "lime")[::2] == (
        2,
        "yoloyard: unknown run 'lime'; did you mean 'line'? in runs/\n",
    )
    assert yoloyard("runs", "show", "line", "--project", "nowhere")[::2] == (2, "yoloyard: no run is in nowhere/\n")


def test_runs_are_compared_on_a_page(run_folder: Path, data: Path, yoloyard: Command) -> None:
    words = ["--data", data, "--epochs", 1, "--name", "<i>&", "--lr0", 0.001, "--optimizer", "SGD", *TINY]
    assert yoloyard("train", *words)[0] == 0
    found = Path("runs/<i>&/last_validation.json")
    found.write_text(found.read_text().replace('"map50": 0.0', '"map50": NaN', 1))
    assert "NaN" in found.read_text()
    code, out, err = yoloyard("runs", "compare", "line", "<i>&", "--json")
    assert (code, err) == (0, "")
    assert "NaN" not in out
    document = json.loads(out)
    assert [run["name"] for run in document["runs"]] == ["line", "<i>&"]
    assert document["settings"]["lr0"][1] == 0.001
    assert document["settings"]["epochs"] == [2, 1]
    assert not {"name", "imgsz", "notify"} & document["settings"].keys()
    names = json.loads((run_folder / "last_validation.json").read_text())["classes"]
    assert [row["name"] for row in document["classes"]] == [row["name"] for row in names]
    page = Path(document["report"]).read_text()
    assert document["report"] == "runs/compare/compare.html"
    assert "<i>&" not in page
    assert "&lt;i&gt;&amp;" in page
    assert page.count("data:image/jpeg;base64,") >= 6
    assert "fetch(" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    code, out, _ = yoloyard("runs", "compare", "line", "<i>&")
    assert code == 0
    assert "lr0" in out
    shutil.copytree(run_folder, "others/line")
    code, out, _ = yoloyard("runs", "compare", "line", "others/line", "--name", "same")
    assert code == 0
    assert "mAP50 of others/line" in Path("runs/same/compare.html").read_text()
    code, _, err = yoloyard("runs", "compare", "line", "runs/line")
    assert code == 2
    assert err.startswith("yoloyard: name two different runs or more")


def test_what_ends_a_run_stands_in_its_folder(data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> RunFolder:
        return read_run(Path("runs/line"))

    from yoloyard.training import trainer

    def fails(run: object) -> None:
        raise ZeroDivisionError("division by zero")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", fails)
        assert yoloyard("train", "--data", data, "--epochs", 1, *TINY)[0] == 1
    assert (state().state, state().reason) == ("failed", "ZeroDivisionError: division by zero")

    def is_asked(self: Any) -> bool:
        self.signal = signal.SIGTERM
        return True

    with monkeypatch.context() as patch:
        patch.setattr("yoloyard.training.interrupt.InterruptRequest.is_asked", is_asked)
        assert yoloyard("train", "--resume", "runs/line", "--epochs", 2)[0] == 143
    assert (state().state, state().reason) == ("interrupted", "SIGTERM came; everything is saved")
    assert state().seconds > 0
    before = state().seconds
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 2)[0] == 0
    assert state().state == "finished"
    assert state().seconds > before


def test_a_run_tells_of_its_end_and_of_its_hosts_and_the_address_is_in_no_file_and_no_line(
    data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yoloyard.training import trainer

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server, train_epoch, number = Server(), trainer.train_epoch, signal.SIGUSR1

    def signalled(run: Any) -> Any:
        os.kill(os.getpid(), number)
        return train_epoch(run)

    monkeypatch.setattr(trainer, "train_epoch", signalled)
    words = ["train", "--data", data, "--epochs", 1, "--notify", server.address, *TINY]
    monkeypatch.setattr(sys, "argv", ["yoloyard", *map(str, words)])
    code, out, err = yoloyard(*words)
    assert code == 0
    number = signal.SIGTERM
    monkeypatch.setenv("YOLOYARD_NOTIFY", server.address)
    assert yoloyard("train", "--resume", "runs/line", "--epochs", 2)[0] == 143
    server.end()
    assert sorted(each["event"] for each in server.got) == ["finished", "host-ending", "host-ending", "interrupted"]
    assert {each["message"].split()[0] for each in server.got} >= {"SIGUSR1", "SIGTERM"}
    assert json.loads(Path("runs/line/environment.json").read_text())["command"][-1]
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert set(server.paths) == {f"/{SECRET}"}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in out + err


@pytest.mark.slow
def test_a_killed_run_is_told_from_one_that_goes_on(data: Path, yoloyard: Command) -> None:
    process = start("train", "--data", data, "--epochs", 10_000, *TINY)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        threading.Thread(target=process.stdout.read, daemon=True).start()
        run = listed(yoloyard)["line"]
        assert (run["state"], run["epochs"], run["epoch"] >= 1) == ("running", 10_000, True)
        assert str(process.pid) in run["reason"]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert listed(yoloyard)["line"]["state"] == "interrupted"


@pytest.mark.slow
def test_weights_and_biases_does_not_get_the_address_of_notify(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(data.parent / name))
    server = Server()
    words = ["train", "--data", data, "--epochs", 1, "--wandb", f"--notify={server.address}", *TINY]
    process = start(*words)
    out, err = process.communicate()
    server.end()
    assert process.returncode == 0, err
    assert len(server.got) == 1
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in out + err
