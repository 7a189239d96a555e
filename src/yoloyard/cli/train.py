"""The command `train`."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yoloyard.cli.flags import given, takes_settings
from yoloyard.config.settings import NEWEST, TrainConfig


@takes_settings(TrainConfig)
def train(
    *,
    config: Annotated[
        Path | None, Parameter(help="a YAML file of the settings below, or an args.yaml of ultralytics; flags win")
    ] = None,
    resume: Annotated[
        str | None, Parameter(help="continue the run of this folder or address; without one, the newest run")
    ] = None,
    **flags: Any,
) -> None:
    """Train a detector on your images and labels."""
    import numpy  # noqa: F401  # before torch, which goes on without it where Ctrl-C comes meanwhile

    from yoloyard.commands.train import train as run
    from yoloyard.common.log import shown_lines
    from yoloyard.config.foreign import overrides_of
    from yoloyard.config.overrides import checked_overrides
    from yoloyard.training.distributed.cluster import become_worker, is_worker, place_here
    from yoloyard.training.distributed.launch import command, launch
    from yoloyard.training.distributed.meeting import meeting_of
    from yoloyard.training.run import RunHere, find_run, num_processes, to_this_host

    resume = {"true": NEWEST, "false": None}.get(str(resume).lower(), resume)
    in_file = overrides_of(config) if config else {}
    overrides = in_file | given(flags)
    if secret := overrides.get("notify"):  # environment.json and W&B keep the command line
        sys.argv[:] = [argument.replace(secret, "***") for argument in sys.argv]
    overrides = checked_overrides(TrainConfig, overrides)
    if "nodes" not in overrides:
        become_worker()
    if not is_worker():
        place, header = place_here(), None
        meeting = meeting_of(overrides.get("nodes"), overrides.get("rendezvous"), place)
        if meeting.max_hosts == 1:  # else rank 0 alone needs to have the run
            overrides, resume = to_this_host(overrides, resume)
            _, header = find_run(overrides, resume)
        else:
            overrides |= {"nodes": meeting.nodes}
        count = num_processes(overrides, header, place.processes, meeting.max_hosts)
        if count > 1 or meeting.max_hosts > 1:
            arguments = [*command(overrides, resume), *(["--debug"] if "--debug" in sys.argv else [])]
            with shown_lines(lambda line: print(f"yoloyard: {line}", file=sys.stderr)):
                sys.exit(launch(count, arguments, meeting, RunHere(overrides, resume)))
    run(overrides, resume)
