"""The command `launch`."""

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH

_Above0 = cyclopts.validators.Number(gt=0)


def launch(
    job: Annotated[Path, Parameter(help="the job file")] = Path("job.yaml"),
    *,
    on: Annotated[
        str | None, Parameter(help="ssh://user@host[:port], or a cloud: aws, gcp, kubernetes ...; wins over `on:`")
    ] = None,
    dry_run: Annotated[bool, SWITCH, Parameter(help="print the plan and what would be made, and make nothing")] = False,
    clean: Annotated[bool, SWITCH, Parameter(help="refuse where files are not as they were committed")] = False,
    new: Annotated[bool, SWITCH, Parameter(help="begin another run, also where the last one isn't finished")] = False,
    price: Annotated[
        float | None, Parameter(help="dollars an hour of a host, where no table knows it", validator=_Above0)
    ] = None,
    release: Annotated[
        str | None, Parameter(help="ssh: a command that gives the host back at the end, such as 'sudo poweroff'")
    ] = None,
    to_kubernetes: Annotated[
        Path | None, Parameter(help="write this job for kubectl into a folder, and start nothing")
    ] = None,
) -> None:
    """Start a job on another host or in a cloud, or go on with it there."""
    from yoloyard.cli.jobs import place_of
    from yoloyard.common.errors import UsageError, UserError
    from yoloyard.jobs.job_file import read_job
    from yoloyard.jobs.prepare import keep, keep_note, note_of, prepare

    found = read_job(job)
    prepared = prepare(found, on or ("kubernetes" if to_kubernetes else None), clean, price, release)
    for line in prepared.differences:
        print(f"differs from the last launch: {line}")
    if prepared.launch.price is not None:
        print(f"price: ${prepared.launch.price:.2f} an hour of a host ({prepared.launch.price_source})")
    if to_kubernetes:
        from yoloyard.jobs.kubernetes import write_kubernetes

        write_kubernetes(prepared, to_kubernetes)
        return
    place = place_of(prepared.launch.on)
    if dry_run:
        made = place.describe(prepared, new)  # before the plan, which takes a while: it refuses what can't be launched
        _print_plan(job)
        print(made)
        return
    note = note_of(found.name)
    before = note.read_bytes() if note.exists() else None
    keep_note(prepared.launch)  # before, so that this machine can find it whatever happens
    try:
        started = place.launch(prepared, new)
    except UsageError:
        note.unlink()  # nothing was begun
        if before is not None:
            note.write_bytes(before)
        raise
    except (KeyboardInterrupt, UserError):
        print(f"not started, or not wholly: launch it again, or see yoloyard jobs status {job}")
        raise
    keep(started, job)
    print(f"{started.run} is started on {started.on}; yoloyard jobs logs -f {job} shows what it prints")


def _print_plan(job: Path) -> None:
    """What `yoloyard plan` says; where there can be no plan, as for images that aren't here, why."""
    from yoloyard.cli.plan import plan
    from yoloyard.common.errors import UserError

    try:
        plan(job)
    except UserError as error:
        print(f"no plan: {error}")
