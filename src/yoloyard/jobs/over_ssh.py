"""A job on a machine that somebody already has, or rents by the hour, by the system's own ssh and rsync.

`launch` is a sequence of steps that can be repeated: where the connection breaks, it goes on when it is called again.
What it starts there is detached, and needs neither the connection nor this machine.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from yoloyard.common.errors import UsageError, UserError, last_line, printable
from yoloyard.common.log import bytes_text
from yoloyard.common.run_folder import read_run
from yoloyard.jobs import setting_up
from yoloyard.jobs.job_folder import JobFolder, probe, script_of
from yoloyard.jobs.launched import FILE, Launch, parse_launch, write_launch
from yoloyard.jobs.prepare import Prepared, differences, image_digest, next_run
from yoloyard.jobs.state import OVER, document
from yoloyard.machines.containers.gpus import find_graphics
from yoloyard.machines.containers.host import connect, environment
from yoloyard.machines.image.versions import best_tag, find_tag

log = logging.getLogger(__name__)

BEAT_SECONDS = 15  # between two signs of life of a launch; a minute without one ends its lock
FIRST_SIGN_SECONDS = 30.0  # that launch waits for the training to begin; a wrong setting fails by then
RETRY_SECONDS = 300.0  # that `logs -f` tries to connect again
# Is a guard at work in the job's folder $1? It prints its process number.
GUARD = r"""cd "$1" 2> /dev/null || exit 0
guard=$(cat guard.pid 2> /dev/null)
[ -n "$guard" ] && grep -q guard.sh "/proc/$guard/cmdline" 2> /dev/null &&
    [ "$(readlink "/proc/$guard/cwd")" = "$(pwd -P)" ] || guard=
"""
FILES = (FILE, "keeper.json")
LOOK = f"""{GUARD}[ -e {setting_up.MARK} ] || exit 0
echo "$guard"
for file in {" ".join(FILES)}; do
    echo "== $file"
    cat "$file" 2> /dev/null && echo
done
echo "== log"
tail -n 15 log.txt 2> /dev/null; :
"""
FOLLOW = f"""{GUARD}[ -e log.txt ] || exit 0
[ -n "$guard" ] && [ "$3" ] && exec tail -c "+$2" -f --pid="$guard" log.txt
exec tail -c "+$2" log.txt
"""
# A folder of ours at $1: made with its mark $2, never taken from anybody else.
OWN_FOLDER = """umask 077
[ ! -e "$1" ] || [ -e "$1/$2" ] || { echo "$1 is there and no job of yoloyard: rename it" >&2; exit 1; }
mkdir -p "$1/runs" && : > "$1/$2"
"""
START = """cd "$1" && rm -f stop
[ "$2" ] || [ ! -e release.sh ] || { rm release.sh && echo unreleased; }
setsid nohup sh guard.sh < /dev/null >> log.txt 2>&1 &
"""


@dataclass(frozen=True)
class Seen:
    """A job's folder at one moment. What isn't there is None or empty."""

    guard: int | None  # the number of its process; None: nothing runs
    launch: Launch | None
    keeper: dict[str, Any]
    log: list[str]  # its last lines


def launch(prepared: Prepared, new: bool = False) -> Launch:
    """Start a job, or go on with its last run there; `new`: begin the next. What runs already is left alone.

    Raises UsageError for what can't be done over ssh; UserError that says what failed and what to do.
    """
    asked = prepared.launch
    if asked.nodes > 1:
        raise UsageError(f"resources.nodes: {asked.nodes} hosts need a cloud or Kubernetes; over ssh a job has one")
    with _opened(asked) as job:
        job.run("making the job's folder", OWN_FOLDER, job.path, setting_up.MARK)
        with _alone(job):
            seen = _look(job)
            before = seen.launch
            if before and not asked.image:  # it chooses the same again
                asked = replace(asked, image=before.image, image_digest=before.image_digest)
            if before and seen.guard:
                if changed := [line.partition(":")[0] for line in differences(before, asked)]:
                    remedy = "yoloyard jobs stop ends it; another `name:` in the job file makes another job"
                    raise UsageError(
                        f"{before.run} is running on {job.host} with another {', '.join(changed)}: {remedy}"
                    )
                log.info(f"{before.run} is running on {job.host} already")
                return before
            run = before.run if before else asked.run
            if new or seen.keeper.get("state") == "finished":
                run = next_run(asked, run)
            graphics = find_graphics(job.host, "all" if asked.gpus else "none")
            if asked.gpu not in (None, "none") and len(graphics.names) < asked.gpus:
                raise UserError(f"{job.host} has {len(graphics.names)} NVIDIA GPUs, the job asks for {asked.gpus}")
            tag = find_tag(asked.image) if asked.image else best_tag(graphics.driver, list(graphics.capabilities))
            digest = asked.image_digest or image_digest(tag)
            now = replace(asked, run=run, image=tag.name, image_digest=digest)
            environment = setting_up.set_up(job, now, tag, graphics)
            setting_up.send_source(job, prepared.source)
            setting_up.send_data(job, prepared.data)
            _send_scripts(job, now, environment, prepared)
            if job.run("starting the job", START, job.path, prepared.release or ""):
                log.warning(
                    f"nothing gives {job.host} back at the end: the last launch had --release, this one has none"
                )
            _wait_for_sign(job, now)
            return now


def describe(prepared: Prepared, new: bool = False) -> str:
    """What `launch` would make and start, for people; no connection is opened."""
    launch, data, root = prepared.launch, prepared.data, "~/.yoloyard"
    patch = f" with changes in {len(prepared.source.changed)} files" if launch.patch else ""
    sent = f"{len(data.files):,} files, {bytes_text(data.bytes)}" if data.folder else f"from {data.source}"
    run = next_run(launch, launch.run) if new else f"{launch.run}, or the next where that is finished"
    rows = {
        f"{root}/packages/{launch.yoloyard}": "this package",
        f"{root}/venvs/": f"a venv of the tag {launch.image or 'that fits'}, unless Docker or podman has its image",
        f"{root}/jobs/{launch.name}/source": f"the commit {launch.commit[:12]}{patch}",
        f"{root}/jobs/{launch.name}/data": sent,
        f"{root}/jobs/{launch.name}/runs": f"the run {run}",
        f"{root}/jobs/{launch.name}/release.sh": prepared.release or "not made: nothing is released",
    }
    lines = [f"on {launch.on}, which is rented or owned already; nothing else is made:"]
    return "\n".join([*lines, *(f"  {name:<44} {text}" for name, text in rows.items())])


def find(on: str, name: str, backup: str | None = None) -> Launch:
    """The last launch of a job, from its record on the host. Raises UserError where it isn't there."""
    with connect(on) as host:
        seen = _found(probe(host, name))
    assert seen.launch is not None
    return replace(seen.launch, on=on)


def status(launch: Launch) -> dict[str, Any]:
    """The document of `yoloyard jobs status --json`. Raises UserError where the job isn't there."""
    with _opened(launch) as job:
        return _status(job, _found(job))


def statuses(on: str) -> list[dict[str, Any]]:
    """Those of all jobs on a host."""
    with connect(on) as host:
        here = probe(host)
        script = 'cd "$1/jobs" 2> /dev/null || exit 0\nfor job in */"$2"; do [ -e "$job" ] && echo "${job%/*}"; done; :'
        names = here.run("listing the jobs", script, here.root, setting_up.MARK).splitlines()
        jobs = [replace(here, name=name) for name in names]
        return [_status(job, seen) for job in jobs if (seen := _look(job)).launch]


def logs(launch: Launch, follow: bool) -> None:
    """Print what the job has printed; `follow`: until it ends, also over connections that break. Raises UserError."""
    at, lost = 1, None
    while True:
        try:
            with _opened(launch) as job:
                _found(job)
                lost = None
                at, is_whole = _print_log(job, at, follow)
            if is_whole:
                return
        except UserError as error:
            if at == 1 or (lost is not None and time.monotonic() - lost > RETRY_SECONDS):
                raise UserError(f"{error}. If the job gives its host back at its end, it may be over") from error
        if not follow:
            raise UserError(f"the connection to {launch.on} broke: run the same command again")
        lost = lost or time.monotonic()
        log.info(f"the connection to {launch.on} broke: connecting again")
        time.sleep(2)


def stop(launch: Launch) -> None:
    """Ask the job to save and end, and wait until it has. Ctrl-C ends the waiting alone."""
    with _opened(launch) as job:
        seen = _found(job)
        if not seen.guard:
            log.info(f"{launch.name} is not running on {job.host}: {seen.keeper.get('state', 'never started')}")
            return
        reason = f"jobs stop on {os.uname().nodename}"
        job.run("asking it to end", 'cd "$1" && echo "$2" > stop.part && mv stop.part stop', job.path, reason)
        log.info(f"{launch.name} saves and ends; Ctrl-C ends the waiting alone")
        while seen.guard:
            time.sleep(1)
            seen = _look(job)
        log.info(f"{launch.name}: {seen.keeper.get('state')}: {seen.keeper.get('reason')}")


def fetch(launch: Launch, project: Path) -> Path:
    """Bring weights, records and report of the job's run into PROJECT/RUN, checkpoints left out; that folder.

    Raises UserError if another run is there.
    """
    with _opened(launch) as job:
        found = _found(job).launch
        assert found is not None
        folder, note = project / found.run, project / found.run / "fetched.json"
        origin = json.dumps({"name": found.name, "run": found.run, "on": found.on})
        if folder.exists() and not (note.exists() and note.read_text(encoding="utf-8") == origin):
            raise UserError(f"{folder} is there and is another run: rename it, or fetch into another --project")
        from_there = PurePosixPath(job.path, "runs", found.run)
        job.run("looking for the run", '[ -d "$1" ] || { echo "there is no $1 yet" >&2; exit 1; }', from_there)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(origin, encoding="utf-8")
        left_out = ["--exclude=/checkpoints", "--exclude=*.tmp"]
        job.rsync("fetching the run", "-rt", *left_out, f"{job.there(from_there)}/", f"{folder}/", is_shown=True)
        return folder


def shell(launch: Launch) -> int:
    """Open a shell in the job's checkout, with its environment; its exit status."""
    with _opened(launch) as job:
        _found(job)
        return job.host.call(["sh", str(job.path / "shell.sh")], os.isatty(0) and os.isatty(1))


@contextlib.contextmanager
def _opened(launch: Launch) -> Iterator[JobFolder]:
    with connect(launch.on) as host:
        yield probe(host, launch.name)


def _look(job: JobFolder) -> Seen:
    text = job.run("looking at the job", LOOK, job.path)
    head, *files = text.split("\n== ", len(FILES) + 1)
    parts = dict(part.partition("\n")[::2] for part in files)
    documents = []
    for name in FILES:
        with contextlib.suppress(ValueError):  # it is not there, or cut off by a full disk
            documents.append(dict(json.loads(parts.get(name, ""))))
            continue
        documents.append({})
    launch = parse_launch(documents[0]) if documents[0] else None
    return Seen(int(head) if head.strip() else None, launch, documents[1], parts.get("log", "").splitlines())


def _found(job: JobFolder) -> Seen:
    seen = _look(job)
    if seen.launch is None:
        raise UserError(f"there is no job {job.name} on {job.host}: yoloyard launch starts it")
    return seen


def _status(job: JobFolder, seen: Seen) -> dict[str, Any]:
    assert seen.launch is not None
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as scratch:
        names = ["status.json", "metrics.jsonl", "config.yaml", "backup.json"]
        chosen = [*(f"--include=/{name}" for name in names), "--exclude=*"]
        run, from_there = Path(scratch, seen.launch.run), PurePosixPath(job.path, "runs", seen.launch.run)
        if job.run("looking for the run", '[ ! -d "$1" ] || echo there', from_there):
            job.rsync("reading the run", "-rt", *chosen, f"{job.there(from_there)}/", f"{run}/")
        return document(seen.launch, seen.keeper, read_run(run, is_copy=True), seen.log, seen.guard is not None)


@contextlib.contextmanager
def _alone(job: JobFolder) -> Iterator[None]:
    """Within the context no other launch of this job is at work there; it ends with the connection, too."""
    beats = 'echo held; while [ "$(timeout 60 dd bs=1 count=1 2> /dev/null)" ]; do :; done'
    argv = ["flock", "-n", "-E", "75", str(job.path / "launching.lock"), "sh", "-c", beats]
    pipe, over = subprocess.PIPE, threading.Event()
    with subprocess.Popen(job.host.command(argv), stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"held\n":
            if holder.wait() == 75:
                raise UserError(f"another launch of {job.name} is at work on {job.host}: wait for it")
            said = holder.stderr.read().decode(errors="replace")
            raise UserError(f"{job.path} on {job.host} can't be locked: {last_line(said)}")

        number = holder.stdin.fileno()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                with contextlib.suppress(OSError):  # the connection is gone; the next step says so
                    os.write(number, b".")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            holder.stdin.close()


def _send_scripts(job: JobFolder, launch: Launch, environment: setting_up.Environment, prepared: Prepared) -> None:
    """Bring what starts the job: its record, the guard, run.sh, shell.sh, and release.sh where it is asked for."""
    run, shell = environment.scripts(job)
    files = {"guard.sh": (resources.files("yoloyard.jobs.node") / "guard.sh").read_text(encoding="utf-8")}
    files |= {"run.sh": run, "shell.sh": shell}
    if prepared.release:
        files["release.sh"] = f"#!/bin/sh\n{prepared.release}\n"
    if launch.data_yaml is not None:
        files["data.yaml"] = launch.data_yaml
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as scratch:
        for name, text in files.items():
            Path(scratch, name).write_text(text, encoding="utf-8")
        write_launch(Path(scratch, FILE), launch)
        job.rsync("sending the scripts", "-rt", f"{scratch}/", f"{job.there(job.path)}/")


def _wait_for_sign(job: JobFolder, launch: Launch) -> None:
    """Until the job says that it runs, or is over. Raises UserError if it failed at once."""
    end, seen = time.monotonic() + FIRST_SIGN_SECONDS, _look(job)
    while time.monotonic() < end:
        seen = _look(job)
        keeper = seen.keeper if seen.keeper.get("launch") == launch.time else {}
        if keeper.get("state") == "failed":
            lines = "\n".join(map(printable, seen.log))
            raise UserError(f"{job.name} failed at once: {keeper['reason']}. Its last lines:\n{lines}")
        if keeper.get("state") in OVER or (seen.guard and keeper.get("step", {}).get("state")):
            return
        time.sleep(0.5)
    if not seen.guard:
        raise UserError(f"{job.name} ended before it could say why: see yoloyard jobs logs {job.name}")
    log.info(f"{job.name} prepares its training; yoloyard jobs logs -f {job.name} shows how far it is")


def _print_log(job: JobFolder, at: int, follow: bool) -> tuple[int, bool]:
    """Print the log from byte `at`, counted from 1; the next byte, and whether the end came by itself."""
    script, pipe = script_of(FOLLOW, job.path, at, "follow" if follow else ""), subprocess.PIPE
    with subprocess.Popen(job.host.command(["sh"]), stdin=pipe, stdout=pipe, env=environment()) as reading:
        assert reading.stdin is not None
        assert reading.stdout is not None
        reading.stdin.write(script.encode())
        reading.stdin.close()
        while chunk := os.read(reading.stdout.fileno(), 65536):
            at += len(chunk)
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return at, reading.returncode != 255
