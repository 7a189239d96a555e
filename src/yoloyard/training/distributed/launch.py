"""Starting a run in several processes, here and on other hosts: by torch's elastic agent, one on each host."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psutil import Process

from yoloyard.common.errors import UsageError
from yoloyard.common.image_size import size_text
from yoloyard.config.settings import NEWEST
from yoloyard.training.distributed.cluster import LAUNCH
from yoloyard.training.distributed.meeting import UNNAMED, Meeting

if TYPE_CHECKING:
    from yoloyard.training.distributed.agent import RunHere

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
            arguments.append(f"--{flag}={size_text(value) if isinstance(value, tuple) else value}")
    return arguments


def launch(count: int, arguments: list[str], meeting: Meeting, here: "RunHere") -> int:
    """Run `yoloyard` with `arguments` in `count` processes here, together with the other hosts of the `meeting`.

    Returns the exit code, and logs who was killed. Raises UserError where the hosts can't meet, lose each other, or
    another one has ended the run, UsageError where they are told to be another number.
    """
    from torch.distributed import PrefixStore
    from torch.distributed.elastic.agent.server import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousTimeout

    from yoloyard.training.distributed import store
    from yoloyard.training.distributed.agent import Agent, Hosts

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # pages about what one line says here
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # started with nohup
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGQUIT"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a host that returns never joins
    signal.signal(signal.SIGUSR1, lambda *_: [child.send_signal(signal.SIGUSR1) for child in Process().children()])

    shared, address = store.meet(meeting)
    name = store.agreed_launch(shared, meeting.run_id)
    os.environ[LAUNCH] = name if meeting.run_id == UNNAMED else meeting.run_id
    agreed = bytes(shared.compare_set(f"{name}/nodes", "", meeting.nodes)).decode()
    if agreed != meeting.nodes:  # they would wait for each other
        raise UsageError(
            f"--nodes is {meeting.nodes} here and {agreed} on the host that came first; say the same on all"
        )
    backend, numbers = C10dRendezvousBackend(shared, name), (meeting.min_hosts, meeting.max_hosts)
    beat = store.BEAT_SECONDS
    waits = RendezvousTimeout(timedelta(seconds=store.JOIN_SECONDS), last_call=timedelta(seconds=beat))
    hosts = Hosts.from_backend(name, shared, backend, *numbers, address, waits, beat)
    restarts = int(meeting.min_hosts < meeting.max_hosts)  # how many there are is decided otherwise
    entry: dict[str, Any] = {"entrypoint": sys.executable, "args": ("-m", "yoloyard", *arguments)}
    spec = WorkerSpec("default_role", count, hosts, max_restarts=restarts, **entry)
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(spec, DefaultLogsSpecs(folder), PrefixStore(name, shared), address, meeting.endpoint, here)
        return agent.work()
