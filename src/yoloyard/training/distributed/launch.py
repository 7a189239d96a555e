"""Starting a run in several processes: the same command, once for each process, by torch's own launcher (torchrun)."""

import logging
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

from psutil import Process

from yoloyard.config.settings import NEWEST

log = logging.getLogger(__name__)


def command(overrides: Mapping[str, Any], resume: str | None) -> list[str]:
    """The arguments of `yoloyard train` that say `overrides`."""
    arguments = ["train"]
    if resume is not None:
        arguments.append("--resume" if resume == NEWEST else f"--resume={resume}")
    for name, value in overrides.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments.append(f"--{flag}={value}")
    return arguments


def launch(count: int, arguments: list[str]) -> int:
    """Run `yoloyard` with `arguments` in `count` processes here; returns the exit code, and logs who was killed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # pages about what one line says here
            logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and "signals_to_handle" in LaunchConfig.__dataclass_fields__:
        options["signals_to_handle"] = "SIGTERM,SIGINT,SIGQUIT"  # started with nohup
    signal.signal(signal.SIGUSR1, lambda *_: [child.send_signal(signal.SIGUSR1) for child in Process().children()])
    with tempfile.TemporaryDirectory() as folder:
        options |= {"run_id": str(uuid.uuid4()), "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        config = LaunchConfig(1, 1, count, max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=folder), **options)
        try:
            elastic_launch(config, sys.executable)("-m", "yoloyard", *arguments)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
            for rank, number in killed.items():
                log.info(f"process {rank} was ended by {signal.Signals(number).name}")
            return 1 if killed else max(codes.values())
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
    return 0
