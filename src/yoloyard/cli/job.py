"""The command `job init`."""

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

job_app = cyclopts.App(name="job")


@job_app.command(name="init")
def job_init(
    run: Annotated[Path | None, Parameter(help="a run folder; default: what lies in this folder")] = None,
    *,
    out: Annotated[Path, Parameter(help="the file to write")] = Path("job.yaml"),
) -> None:
    """Write a job file with comments, from a run folder or from the defaults."""
    from yoloyard.jobs.job_init import write_job

    write_job(run, out)
    print(f"wrote {out}: look through it, then yoloyard plan {out}")
