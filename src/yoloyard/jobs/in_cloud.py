"""Jobs in clouds and on Kubernetes, as managed jobs of SkyPilot: it finds hosts, replaces lost ones, takes them back.

What a job has done stands in its backup, where each machine can read it: BACKUP/job/keeper.json and log.txt. So status,
logs, stop and fetch need neither SkyPilot nor its records; with them, they know more.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.log import bytes_text
from yoloyard.common.run_folder import read_run
from yoloyard.jobs import sky_task, skypilot
from yoloyard.jobs.launched import FILE, Launch, parse_launch
from yoloyard.jobs.node.records import LOG, PLACE, STATE, STOP
from yoloyard.jobs.prepare import Prepared, image_digest, next_run, note_of
from yoloyard.jobs.sky_task import FOLDER, LABEL, clouds_of, sky_name
from yoloyard.jobs.state import OVER, document
from yoloyard.storage.address import open_store, reasons_said
from yoloyard.storage.fetch import fetch_run

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

ALIVE_SECONDS = 900  # since keeper.json was written; an older one is of a host that is lost
STOP_SECONDS = 900  # that a job may take to save and upload before its hosts are taken away
POLL_SECONDS = 5.0
LOG_LINES = 15  # of the end of the log, where a job has failed
STARTING = ("PENDING", "SUBMITTED", "STARTING", "RECOVERING")  # SkyPilot's states without a keeper at work


def describe(prepared: Prepared, new: bool = False) -> str:
    """What `launch` would make, and its YAML; makes nothing and asks no cloud. Raises UsageError."""
    prepared = _with_tag(prepared)
    launch, task = prepared.launch, _task(prepared)[0]
    what = f"{launch.nodes} x " + (f"{launch.gpu}:{launch.gpus}" if launch.gpus else "CPU")
    spot = " on spot" if prepared.job.resources.spot else ""
    data = f", {_data_place(prepared)}/ ({bytes_text(prepared.data.bytes)} of data)" if prepared.data.folder else ""
    made = [
        f"a managed job of SkyPilot, {task['name']}",
        f"{what}{spot} on {launch.on}, each with its disk; all labelled {LABEL}={task['name']}",
        *["on AWS, once for all jobs, free: SkyPilot's role skypilot-v1, its group sky-sg-..."] * ("aws" in launch.on),
        skypilot.watcher_text(),
        f"in {_backup(launch)}: {launch.run}/ (the run), job/ (its records){data}",
        "no bucket: SkyPilot copies the source straight to the hosts",
    ]
    shown = {**sky_task.scripts(prepared), "task.yaml": sky_task.text_of(task)}
    texts = [f"--- {name}\n{text}" for name, text in shown.items() if name not in ("checkout.sh", "environment.sh")]
    return "\n".join(["would be made:", *(f"  {line}" for line in made), *texts])


def launch(prepared: Prepared, new: bool = False) -> Launch:
    """Start a job, or go on with its last run if that is not finished; `new` begins the next one.

    Returns when SkyPilot has the job, and before there is a host: that may take long where GPUs are short. Raises
    UsageError or UserError; then, and on Ctrl-C, nothing is left but what lies in the backup.
    """
    prepared = _with_tag(prepared)
    backup, name = _backup(prepared.launch), _task(prepared)[0]["name"]
    sky = skypilot.load()
    skypilot.check_clouds(sky, clouds_of(prepared.launch))
    if job := skypilot.active_job(sky, name):
        raise UserError(f"{name} is already with SkyPilot ({job['status']}): yoloyard jobs status, jobs stop")
    other = json.loads(_read(prepared.launch, f"{PLACE}/{FILE}") or "{}").get("name", prepared.launch.name)
    if other != prepared.launch.name:
        raise UsageError(f"{backup} has the records of the job {other}: give each job a `backup:` of its own")
    before = json.loads(_read(prepared.launch, f"{PLACE}/{STATE}") or "{}")
    if before.get("state", "failed") not in OVER and _seconds_since(before["updated"]) < ALIVE_SECONDS:
        raise UserError(f"{prepared.launch.name} runs already, as {backup}/{PLACE} says: yoloyard jobs stop ends it")
    run = str(before.get("run") or prepared.launch.run)
    if new or before.get("state") == "finished":
        run = next_run(prepared.launch, run)
    sent = started = replace(prepared.launch, run=run)
    if prepared.data.folder is not None:
        _send_data(prepared)
        sent = replace(started, data_source=f"{backup}/{_data_place(prepared)}")
    prepared = replace(prepared, launch=sent)
    sky_task.stage(prepared, _folder(name))
    task, secret = _task(prepared)
    _write(sent, FILE, (_folder(name) / FILE).read_bytes())
    _write(sent, STOP, None)
    log.info(skypilot.watcher_text())
    with skypilot.said("SkyPilot can't start the job"), skypilot.configured(sky, clouds_of(sent)):
        whole, request = sky.Task.from_yaml_config(task, secrets_overrides=list(secret.items())), None
        try:
            request = sky.jobs.launch(whole, name=name)
            sky.stream_and_get(request, output_stream=skypilot.Log())
        except BaseException:
            log.info("the launch ended early: taking back what was begun")
            if request is not None:
                sky.get(sky.api_cancel(request, silent=True))
            skypilot.cancel(sky, name)
            raise
    return started


def find(on: str, name: str, backup: str | None = None) -> Launch:
    """The last launch of a job, from its backup. Raises UsageError without one, UserError where it isn't there."""
    if backup is None:
        raise UsageError(f"where {name} has its backup is not known here: name its job file")
    if not (text := _read(parse_launch({"backup": backup, "train": {}}), f"{PLACE}/{FILE}")):
        raise UserError(f"{backup} has no record of a job: it was not launched yet, or `backup:` is another now")
    return parse_launch(json.loads(text))


def status(launch: Launch) -> dict[str, Any]:
    """The document of `yoloyard jobs status --json`; from this machine's SkyPilot, too, where that knows the job."""
    keeper, record = _keeper(launch), _record(launch)
    is_there = record is not None or _seconds_since(keeper.get("updated", launch.time)) < ALIVE_SECONDS
    if record is not None and record["status"] in STARTING:
        lost = f", after {record['recovery_count']} lost hosts" if record["recovery_count"] else ""
        keeper |= {"state": "starting", "reason": f"SkyPilot looks for a host ({record['status']}{lost})"}
    elif record is not None and record["is_over"] and keeper["state"] not in OVER:
        state = "stopped" if record["status"] == "CANCELLED" else "failed"
        reason = skypilot.plain(record["failure_reason"] or "")
        keeper |= {"state": state, "reason": reason or f"SkyPilot ended it ({record['status']})"}
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as folder:
        for name in ("status.json", "metrics.jsonl", "config.yaml"):
            if text := _read(launch, f"{keeper['run']}/{name}"):
                Path(folder, name).write_bytes(text)
        run = read_run(Path(folder), is_copy=True)
    lines = _read(launch, f"{PLACE}/{LOG}").decode(errors="replace").splitlines()
    return document(replace(launch, run=keeper["run"]), keeper, run, lines[-LOG_LINES:], is_there)


def logs(launch: Launch, follow: bool = False) -> None:
    """Print what the job prints; `follow` until it is over. From another machine: what has reached the backup."""
    record = _record(launch)
    if record is not None and not (record["is_over"] and "updated" in _keeper(launch)):  # with how the host is set up
        with skypilot.said("SkyPilot can't show the log"):
            skypilot.load().jobs.tail_logs(job_id=record["job_id"], follow=follow)
        return
    shown = b""
    while True:
        is_over = _keeper(launch)["state"] in OVER
        text = _read(launch, f"{PLACE}/{LOG}")
        _, found, rest = text.rpartition(shown) if shown else (b"", b"", text)  # of a long log only the end is there
        new = rest if found or not shown else text
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()
        shown = (shown + new)[-1000:]
        if is_over or not follow:
            return
        time.sleep(POLL_SECONDS)


def stop(launch: Launch) -> None:
    """Let the job save and end, and wait until its hosts are gone. Raises UserError if it doesn't."""
    _write(launch, STOP, b"jobs stop")
    log.info("asked the job to save and end")
    waited, record = 0.0, _record(launch)
    while waited < STOP_SECONDS and (record is None or record["status"] not in STARTING):
        if record["is_over"] if record else _keeper(launch)["state"] in OVER:
            return
        time.sleep(POLL_SECONDS)
        waited, record = waited + POLL_SECONDS, _record(launch)
    if record is None:
        why = f"has not ended after {STOP_SECONDS // 60} minutes, and SkyPilot here doesn't know it"
        raise UserError(f"{launch.name} {why}: run `yoloyard jobs stop` on {launch.host}, which launched it")
    with skypilot.said("SkyPilot can't end the job"):
        skypilot.cancel(skypilot.load(), sky_name(launch))


def fetch(launch: Launch, project: Path) -> Path:
    """Bring the newest run from the backup into `project`; returns its folder."""
    return fetch_run(f"{_backup(launch)}/{_keeper(launch)['run']}", launch.train.get("backup_endpoint"), project)


def shell(launch: Launch) -> int:
    """Open a shell on the first host, by ssh as SkyPilot has set it up; returns its exit status. Raises UserError."""
    record = _record(launch)
    if record is None or record["status"] != "RUNNING":
        raise UserError(f"{launch.name} has no host now that SkyPilot here knows: yoloyard jobs status")
    from sky.jobs.utils import generate_managed_job_cluster_name

    host = generate_managed_job_cluster_name(sky_name(launch), record["job_id"])
    if not Path("~/.sky/generated/ssh", host).expanduser().exists():
        raise UserError(f"the key of {host} is on SkyPilot's API server or controller: use `ssh {host}` there")
    return subprocess.run(["ssh", "-t", host, f"cd {FOLDER}; exec $SHELL -l"], check=False).returncode


def _with_tag(prepared: Prepared) -> Prepared:
    """The launch with the image tag that it will have."""
    tag, digest = sky_task.tag_of(prepared.launch), prepared.launch.image_digest
    return replace(prepared, launch=replace(prepared.launch, image=tag.name, image_digest=digest or image_digest(tag)))


def _task(prepared: Prepared) -> tuple[dict[str, Any], dict[str, str]]:
    """The task, and the secrets that go along, by their names."""
    _backup(prepared.launch)
    plain, secret = sky_task.credentials(prepared.launch)
    task = sky_task.task_of(prepared, _folder(sky_name(prepared.launch)), list(secret))
    return ({**task, "envs": plain} if plain else task), secret


def _backup(launch: Launch) -> str:
    if launch.backup is None:
        raise UsageError("a job in a cloud needs `backup:`, an object-store prefix: there it resumes from, and ends")
    return launch.backup.rstrip("/")


def _folder(name: str) -> Path:
    """What goes to a job's hosts. It stays here until the next launch: a host that replaces another needs it."""
    return note_of(name).with_suffix("")


def _record(launch: Launch) -> dict[str, Any] | None:
    """SkyPilot's newest record of the job since its launch; None where SkyPilot here doesn't know it."""
    if not skypilot.is_installed():
        return None
    with skypilot.said("SkyPilot can't list its jobs"):
        rows = skypilot.records(skypilot.load())
    began = datetime.fromisoformat(launch.time).timestamp()
    rows = [row for row in rows if row["job_name"] == sky_name(launch)]
    return next((row for row in rows if (row["submitted_at"] or began) >= began - 60), None)


def _read(launch: Launch, path: str) -> bytes:
    """An object in the backup of a job; empty if there is none."""
    store = _store(launch)
    import obstore

    with reasons_said(_backup(launch)):
        try:
            return bytes(obstore.get(store, path).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return b""


def _write(launch: Launch, name: str, record: bytes | None) -> None:
    """Write a record of a job into its backup; None removes it."""
    store = _store(launch)
    import obstore

    with reasons_said(_backup(launch)):
        if record is not None:
            obstore.put(store, f"{PLACE}/{name}", record)
        elif _read(launch, f"{PLACE}/{name}"):
            obstore.delete(store, f"{PLACE}/{name}")


def _store(launch: Launch) -> "ObjectStore":
    return open_store(_backup(launch), launch.train.get("backup_endpoint"))


def _keeper(launch: Launch) -> dict[str, Any]:
    """keeper.json, if it is of this launch or a later one."""
    found: dict[str, Any] = json.loads(_read(launch, f"{PLACE}/{STATE}") or "{}")
    is_older = str(found.get("launch") or "") < launch.time
    return {"state": "starting", "run": launch.run} if is_older else found


def _seconds_since(time_text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time_text)).total_seconds()


def _data_place(prepared: Prepared) -> str:
    """Where in the backup a local data set is brought to: by its fingerprint, so that a run sees no other one."""
    return f"data/{prepared.data.fingerprint.rpartition(':')[2][:16]}"


def _send_data(prepared: Prepared) -> None:
    """Bring the local data to the backup, where hosts fetch them; what is there already is not sent again."""
    data, folder, place, store = prepared.data, prepared.data.folder, _data_place(prepared), _store(prepared.launch)
    import obstore

    assert folder is not None
    with reasons_said(_backup(prepared.launch)), ThreadPoolExecutor(8) as threads:
        there = {each["path"]: each["size"] for chunk in obstore.list(store, f"{place}/") for each in chunk}
        missing = [name for name in data.files if there.get(f"{place}/{name}") != (folder / name).stat().st_size]
        log.info(f"sending {len(missing):,} of {len(data.files):,} files of {folder} to the backup, {place}/")
        for _ in threads.map(lambda name: obstore.put(store, f"{place}/{name}", folder / name), missing):
            pass  # the first that fails ends the others
