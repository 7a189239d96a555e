"""The commands for jobs that were launched: `jobs list`, `status`, `logs`, `stop`, `fetch`, `shell` and `sweep`."""

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH, Json, Project, print_json, stdout_for_json

if TYPE_CHECKING:
    from yoloyard.jobs.launched import Launch
    from yoloyard.jobs.sweep import Found

jobs_app = cyclopts.App(name="jobs")

_Job = Annotated[str, Parameter(help="the job file, or the job's name")]
_On = Annotated[str | None, Parameter(help="where it runs, where lock and notes don't say: ssh://user@host[:port]")]


@jobs_app.command(name="list")
def jobs_list(
    *,
    on: Annotated[str | None, Parameter(help="those on this host: ssh://user@host[:port]")] = None,
    all: Annotated[
        bool, SWITCH, Parameter(help="all of ours in each cloud, whoever launched it, with its cost")
    ] = False,
    json: Json = False,
) -> None:
    """List the jobs that were launched from this machine, or those on a host, with their state."""
    if all:
        _list_all(json)
        return
    from yoloyard.cli.runs import print_table
    from yoloyard.common.errors import printable
    from yoloyard.jobs import over_ssh
    from yoloyard.jobs.prepare import notes
    from yoloyard.jobs.state import texts

    with stdout_for_json(json), ThreadPoolExecutor(8) as threads:
        found = over_ssh.statuses(on) if on else list(threads.map(_status, notes()))
    if json:
        print_json({"jobs": found})
        return
    if not found:
        print(f"no job is on {on}" if on else "no job was launched from this machine; --on lists those on a host")
        return
    print_table(["job", *texts(found[0])], *([job["name"], *texts(job).values()] for job in found))
    for job in found:
        if job["reason"]:
            print(printable(f"{job['name']}: {job['state']}: {job['reason']}"))


@jobs_app.command(name="status")
def jobs_status(job: _Job, /, *, on: _On = None, json: Json = False) -> None:
    """Show how far a job is: state, epoch, best figure, hours and cost so far."""
    from yoloyard.cli.runs import print_table
    from yoloyard.common.errors import printable
    from yoloyard.jobs.state import texts

    with stdout_for_json(json):
        launch = find_launch(job, on)
        status = place_of(launch.on).status(launch)
    if json:
        print_json(status)
        return
    rows = texts(status) | {name: str(status[name] or "") for name in ("reason", "attempts", "launched", "updated")}
    print_table([status["name"], ""], *([name, value] for name, value in rows.items() if value))
    for line in status["log"]:
        print(printable(line))


@jobs_app.command(name="logs")
def jobs_logs(
    job: _Job,
    /,
    *,
    follow: Annotated[bool, SWITCH, Parameter(name=["--follow", "-f"], help="go on until the job ends")] = False,
    on: _On = None,
) -> None:
    """Print what a job has printed. Ctrl-C ends the view, not the job."""
    launch = find_launch(job, on)
    place_of(launch.on).logs(launch, follow)


@jobs_app.command(name="stop")
def jobs_stop(job: _Job, /, *, on: _On = None) -> None:
    """Let a job save and end, and wait for it; launch goes on with it."""
    launch = find_launch(job, on)
    place_of(launch.on).stop(launch)


@jobs_app.command(name="fetch")
def jobs_fetch(job: _Job, /, *, project: Project = Path("runs"), on: _On = None) -> None:
    """Bring the weights, records and report of a job's run here."""
    from yoloyard.common.run_folder import read_run
    from yoloyard.jobs.bill import bill, rows
    from yoloyard.jobs.cheaper import add_cheaper

    launch = find_launch(job, on)
    folder = place_of(launch.on).fetch(launch, project)
    add_cheaper(read_run(folder, is_copy=True))
    print(f"fetched: {folder}")
    for name, value in rows(bill(read_run(folder, is_copy=True))).items():
        print(f"{name}: {value}")


@jobs_app.command(name="shell")
def jobs_shell(job: _Job, /, *, on: _On = None) -> None:
    """Open a shell on the job's host, in its checkout and environment."""
    launch = find_launch(job, on)
    sys.exit(place_of(launch.on).shell(launch))


@jobs_app.command(name="sweep")
def jobs_sweep(
    *, yes: Annotated[bool, SWITCH, Parameter(help="ask nothing; what others have launched is left alone")] = False
) -> None:
    """End what no live job explains in clouds. Asks first, and waits until the provider says that it is gone."""
    from yoloyard.common.errors import UserError
    from yoloyard.jobs.sweep import end, everything

    found, failures = everything()
    orphans = [each for each in found if not each.job]
    for line in failures:
        print(f"warning: {line}")
    if orphans:
        _print_found(orphans)
    ended = [each for each in orphans if _is_to_end(each, yes)]
    if left := end(ended):
        names = ", ".join(f"{each.cloud} {each.id}" for each in left)
        raise UserError(f"not gone yet, as their providers say: {names}; look there, and sweep again")
    kept = f"; {len(orphans) - len(ended)} left alone" if len(orphans) > len(ended) else ""
    print(f"{len(ended)} ended, and gone as their providers say{kept}" if orphans else "nothing to end")


def _is_to_end(orphan: "Found", is_sure: bool) -> bool:
    if is_sure:
        return orphan.is_own
    from yoloyard.common.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here: --yes ends what this machine's SkyPilot has made")
    whose = "" if orphan.is_own else ", launched by another machine or user, whose jobs are not known here"
    return input(f"end {orphan.cloud} {orphan.kind} {orphan.id} ({orphan.name}{whose})? [y/N] ").lower() in ("y", "yes")


def _list_all(json: bool) -> None:
    """What all clouds have of ours."""
    from yoloyard.jobs.sweep import everything

    with stdout_for_json(json):
        found, failures = everything()
    if json:
        names = ("cloud", "kind", "id", "name", "region", "price", "cost", "job", "is_own")
        rows = [{name: getattr(each, name) for name in names} | {"began": each.began and each.began.isoformat()}
                for each in found]  # fmt: skip
        print_json({"found": rows, "failures": failures})
        return
    for line in failures:
        print(f"warning: {line}")
    if not found:
        print("nothing of ours is in the clouds that were asked")
        return
    _print_found(found)


def _print_found(found: "list[Found]") -> None:
    from yoloyard.cli.runs import print_table

    rows = []
    for each in found:
        since = f"{each.began:%Y-%m-%d %H:%M}" if each.began else ""
        cost = "unknown" if each.cost is None else f"${each.cost:.2f}"
        job = each.job or each.name + (": orphan" if each.is_own else ": launched elsewhere")
        rows.append([each.cloud, each.region, each.kind, each.id, since, cost, job])
    print_table(["cloud", "region", "what", "id", "since", "cost so far", "job"], *rows)


def place_of(on: str) -> ModuleType:
    """What starts and watches jobs at `on`: over_ssh or in_cloud, which have the same functions. Raises UsageError."""
    from yoloyard.machines.containers.host import parse_host

    if is_host := "://" in on:
        parse_host(on)
    return import_module("yoloyard.jobs." + ("over_ssh" if is_host else "in_cloud"))


def find_launch(job: str, on: str | None) -> "Launch":
    """The last launch of a job, by its file or its name: from its lock, a note of this machine, or where it runs.

    Raises UsageError where none of them is known, UserError where the job isn't there.
    """
    from yoloyard.common.errors import UsageError
    from yoloyard.jobs.job_file import read_job
    from yoloyard.jobs.launched import read_launch
    from yoloyard.jobs.prepare import note_of, read_lock

    found = read_job(Path(job)) if job.endswith((".yaml", ".yml")) or Path(job).is_file() else None
    if found:
        name, place, known, backup = found.name, on or found.on, read_lock(Path(job)), found.backup
    else:
        note = note_of(job)
        name, place, known, backup = job, on, read_launch(note) if note.exists() else None, None
    if known and on in (None, known.on):
        return known
    if place is None:
        remedy = (
            "write --on ssh://user@host, or another place" if found else "name its job file, or --on ssh://user@host"
        )
        raise UsageError(f"where {name} runs is not known here: {remedy}")
    return place_of(place).find(place, name, backup)


def _status(launch: "Launch") -> dict[str, Any]:
    """Of a job in a list; one that can't be asked says why."""
    from yoloyard.common.errors import UserError
    from yoloyard.jobs.state import document

    try:
        return place_of(launch.on).status(launch)
    except UserError as error:
        return document(launch, {"state": "unknown", "reason": str(error)}, None, [], True)
