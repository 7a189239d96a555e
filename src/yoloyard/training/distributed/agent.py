"""What a host does for a run: starts its processes, and again where hosts come or go, by torch's elastic agent.

torch restarts whatever failed, a fixed number of times. Here an error of the user's ends the run on all hosts, what
may go better next time starts again from the last save, and a host that has gone is noticed without its processes.
"""

import json
import logging
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, cast

import torch.distributed as dist
from torch.distributed.elastic.agent.server import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousInfo,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from yoloyard.common.errors import SilentError, UsageError, UserError
from yoloyard.training.distributed.hosts import SILENT_SECONDS, Host, data_problem, differences, facts, unreached
from yoloyard.training.distributed.store import BEAT_SECONDS, JOIN_SECONDS, STORE_SECONDS, answers, serve
from yoloyard.training.distributed.watch import APART_CODE, LOST_CODE, UNEXPECTED_CODE
from yoloyard.training.interrupt import HOSTS_CHANGE

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
SAVE_SECONDS = 300.0  # that processes may take to end a validation and save, before hosts change
HANGING_SECONDS = 5.0  # that processes have to end which wait for a host that has gone
TELL_SECONDS = 10.0  # within which all hosts hear that the run has ended
MOST_FAILURES = 3  # of processes, without a save between them
GOES_ON = {
    LOST_CODE,
    UNEXPECTED_CODE,
    APART_CODE,
    *(128 + each for each in (HOSTS_CHANGE, signal.SIGTERM, signal.SIGHUP)),
}


class RunHere(Protocol):
    """What a host has of the run that is launched with these overrides."""

    @property
    def overrides(self) -> Mapping[str, Any]: ...

    def saved(self) -> int:
        """How many batches of it are saved here; -1 without a run folder."""

    def fetch(self) -> bool:
        """Get it from its `--backup`; false without one. Raises UserError if that is not possible."""


class EndedError(UserError):
    """The run was ended on another host."""


class Hosts(DynamicRendezvousHandler):
    """torch's rendezvous, which can also tell who has gone."""

    use_agent_store = True  # the agents hold the store of the processes: a new one in each round
    _met = 0

    def next_rendezvous(self) -> RendezvousInfo:
        waits = threading.Timer(SILENT_SECONDS, lambda: log.info(self._waiting_line()))
        waits.daemon = True
        waits.start()
        try:
            info = super().next_rendezvous()
        finally:
            waits.cancel()
        self._met = info.world_size
        return info

    def _waiting_line(self) -> str:
        state, settings = self._state_holder.state, self._settings
        if self._this_node in state.redundancy_list:
            return f"the run has its {settings.max_nodes} hosts; this one waits until one of them leaves"
        if self._this_node not in state.participants:
            return "waiting for the hosts that are in the run: they save before this one comes in"
        until = datetime.now() + settings.timeout.join - timedelta(seconds=SILENT_SECONDS)
        return (
            f"{len(state.participants)} of {settings.min_nodes} hosts have come; waiting for the others until "
            f"{until:%H:%M:%S} (they need the same command, and clocks that agree)"
        )

    def changes(self) -> tuple[int, int]:
        """How many hosts wait to come in, and how many have gone. A host without a sign of life has gone."""
        waiting = self.num_nodes_waiting()  # which reads the state
        present = self._state_holder.state.participants
        return waiting, self._met - (len(present) if self._this_node in present else 0)

    def others(self) -> int:
        """How many other hosts are there, as far as is known."""
        state = self._state_holder.state
        return len((state.participants.keys() | state.wait_list) - {self._this_node})


class Agent(LocalElasticAgent):
    """Runs the processes of this host.

    `shared` is the store of this launch alone; `address`: by which others reach this host; `endpoint`: where the hosts
    meet, empty for this host alone.
    """

    def __init__(
        self, spec: WorkerSpec, logs: LogsSpecs, shared: dist.Store, address: str, endpoint: str, here: RunHere
    ) -> None:
        super().__init__(spec, logs)
        self.hosts = cast(Hosts, spec.rdzv_handler)
        self.is_elastic = spec.max_restarts > 0
        self.name = platform.node() if not endpoint else f"{platform.node()} ({address})"
        self._shared, self._address, self._endpoint, self._here = shared, address, endpoint, here
        self._id = uuid.uuid4().hex
        self._saved = -1  # batches, of the run when this attempt began
        self._round: dist.Store  # of the agents of one attempt
        self._of_processes: dist.Store
        self.over = threading.Event()
        if endpoint:
            threading.Thread(target=self._keep_in_touch, daemon=True).start()

    def work(self) -> int:
        """Run the processes until the run ends or this host leaves it; returns the exit code.

        Raises UserError where the hosts can't meet, lose each other, or another one has ended the run.
        """
        try:
            if self.is_elastic:
                self._compare_with_first()
            if (result := self.run()) is None:
                log.info("the run has ended; this host was not needed")
                return 0
            self.hosts.shutdown()
            codes = [failure.exitcode for failure in result.failures.values()]
            if any(code < 0 and code != -signal.SIGTERM for code in codes):
                return 1
            return max(1, *codes) if codes else 0
        except SignalException as stopped:
            code = 128 + int(stopped.sigval)
            if self.is_elastic and code in GOES_ON:
                log.info("this host leaves the run, which goes on where other hosts are there")
            else:
                is_said = self._worker_group.group_rank == 0  # else the host of rank 0 says how to go on
                self.end(code, f"{stopped.sigval.name} came there", is_said)
            return code
        except RendezvousClosedError:
            self._stop_if_ended()
            raise
        except RendezvousTimeoutError as error:
            raise UserError(f"too few hosts have come to --rendezvous {self._endpoint} in {JOIN_SECONDS} s") from error
        except (RendezvousError, dist.DistNetworkError) as error:
            raise UserError(lost_line(self._endpoint)) from error
        finally:
            self.over.set()

    def _compare_with_first(self) -> None:
        """Raise UsageError if this host is not like the launch's first one, before it ends what the others do."""
        overrides = self._here.overrides
        own = Host(platform.node(), self._address, facts=facts(overrides))
        first = Host(**json.loads(self._shared.compare_set("first host", "", json.dumps(asdict(own)))))
        own = replace(own, problem=data_problem(overrides.get("data")))
        if line := differences([first, own]):
            raise UsageError(line)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Meet the other hosts. The one with the newest save gets rank 0, and its store serves all processes."""
        group: Any = worker_group
        spec, served = group.spec, serve(self._address, 0)
        self._of_processes = served
        own: dict[str, Any] = {
            "id": self._id,
            "name": self.name,
            "node": platform.node(),
            "address": self._address,
            "port": served.port,
        }
        texts: list[bytes] = []
        while not texts:
            with suppress(dist.DistStoreError):  # one has gone at this moment
                info = self.hosts.next_rendezvous()
                own |= {"processes": spec.local_world_size, "saved": self._here.saved()}
                info.store.set(f"host {info.rank}", json.dumps(own))
                texts = info.store.multi_get([f"host {rank}" for rank in range(info.world_size)])
        hosts = sorted(map(json.loads, texts), key=lambda host: -host["saved"])  # by rank where they are equal
        number = next(place for place, host in enumerate(hosts) if host["id"] == self._id)
        counts = [host["processes"] for host in hosts]
        first, size = sum(counts[:number]), sum(counts)
        group.workers = [Worker(n, first + n, first + n, size, size) for n in range(spec.local_world_size)]
        self._round = group.store = info.store
        group.group_rank, group.group_world_size = number, info.world_size
        group.master_addr, group.master_port = hosts[0]["address"], hosts[0]["port"]
        self._saved = hosts[0]["saved"]
        if number == 0:
            self._take_over(hosts)
        else:
            self._reach(*(Host(each["node"], each["address"], each["port"]) for each in (own, hosts[0])))

    def _reach(self, own: Host, head: Host) -> None:
        """Raise UserError where the store of rank 0's host is out of reach, though that host is there."""
        until = time.monotonic() + STORE_SECONDS
        while (lost := unreached(own, [head])) and not self.hosts.changes()[1]:
            if time.monotonic() > until:
                if not self.is_elastic:
                    self.end(1, lost[0])
                raise UserError(lost[0])
            time.sleep(LOOK_SECONDS)

    def _take_over(self, hosts: Sequence[dict[str, Any]]) -> None:
        """Before this host gets rank 0: see whether the run is here, and note that it is."""
        former = json.loads(self._shared.get("rank 0")) if self._shared.check(["rank 0"]) else hosts[0]
        gone = all(host["id"] != former["id"] for host in hosts)
        kept = max(former["saved"], 0) if self._shared.check(["begun"]) else former["saved"]
        if gone and self._saved < kept and not self._here.fetch():
            where = f"the run was on {former['name']}, which is not there, and {self.name} has"
            if self._saved < 0:
                line = f"{where} no run folder: start that host again, or use a shared disk or --backup"
                self.end(1, line)
                raise UserError(line)
            log.warning(f"{where} an earlier save: training goes on from there")
        self._shared.set("rank 0", json.dumps(hosts[0]))

    def _invoke_run(self, role: str = "") -> RunResult:
        while True:
            self._initialize_workers(self._worker_group)
            if (result := self._look_after(self._worker_group)) is not None:
                return result

    def _look_after(self, group: WorkerGroup) -> RunResult | None:
        """Wait for the processes: how they have ended, or None if they are to start again.

        Raises EndedError or UserError where the run has ended otherwise.
        """
        while True:
            time.sleep(LOOK_SECONDS)
            result = self._monitor_workers(group)
            if result.state is WorkerState.SUCCEEDED:
                self._wait_for_others(group)
                return result
            if result.state is not WorkerState.HEALTHY:
                if not self._goes_on(result):
                    return result
                log.info("starting again from the last save")
                return None
            self._stop_if_ended()
            if group.group_rank == 0 and self._saved < 0 <= self._here.saved():
                self._saved = 0
                self._shared.set("begun", "")
            coming, gone = self.hosts.changes() if self._endpoint else (0, 0)  # a laptop may have slept
            if gone and not self.is_elastic:
                self._stop(HANGING_SECONDS)
                line = f"{gone} of {group.group_world_size} hosts show no sign of life; go on with --resume"
                self.end(1, line)
                raise UserError(line)
            if gone or coming:
                log.info(f"of {group.group_world_size} hosts {gone} left, {coming} come in; it goes on from a save")
                self._stop(HANGING_SECONDS if gone else SAVE_SECONDS)
                return None

    def _goes_on(self, result: RunResult) -> bool:
        """May processes that failed start again? If not, all hosts hear of it."""
        failures = [each for each in result.failures.values() if each.exitcode != -signal.SIGTERM]  # by torch
        final = [each for each in failures if each.exitcode > 0 and each.exitcode not in GOES_ON]
        spoken = [each for each in failures if not each.error_file_data.get("silent", True)]
        for rank, each in result.failures.items():
            if each in failures and each.exitcode < 0:
                log.info(f"process {rank} was ended by {signal.Signals(-each.exitcode).name}")
        if self.is_elastic and not final:
            if any(each.exitcode == APART_CODE for each in spoken):
                raise SilentError("its process has said why this host leaves")
            is_own = any(each.exitcode < 0 or each.exitcode == UNEXPECTED_CODE for each in failures)
            if not is_own or self._round.add("failures", 1) > 1:
                return True
            if self._shared.add(f"failures at {self._saved}", 1) < MOST_FAILURES:
                return True
            line = f"processes failed {MOST_FAILURES} times without a save between them; the run ends"
            self.end(1, line)
            raise UserError(line)
        is_said = any(each in final for each in spoken)
        for each in ((spoken if is_said else final) or list(result.failures.values()))[:1]:
            self.end(max(each.exitcode, 1), str(each.message), is_said)
        return False

    def end(self, code: int, line: str, is_said: bool = True) -> None:
        """Tell all hosts that the run has ended; where `is_said`, the user has read it here.

        Raises EndedError if another host said so before.
        """
        until = time.monotonic() + (0 if is_said or not self._endpoint else TELL_SECONDS)
        while time.monotonic() < until and not self._shared.check(["ended"]):
            time.sleep(LOOK_SECONDS)
        ended = json.loads(self._shared.compare_set("ended", "", self._ended(code, line)))
        self.hosts.shutdown()
        if ended["id"] != self._id:
            self._raise_ended(ended)
        until = time.monotonic() + TELL_SECONDS
        others = self.hosts.others()
        while self._shared.add("heard", 0) < others and time.monotonic() < until:  # the store may end with this host
            time.sleep(LOOK_SECONDS)

    def _ended(self, code: int, line: str) -> str:
        return json.dumps({"id": self._id, "name": self.name, "code": code, "line": line})

    def _stop_if_ended(self) -> None:
        if self._shared.check(["ended"]):
            ended = json.loads(self._shared.get("ended"))
            self._stop(HANGING_SECONDS)
            self._raise_ended(ended)

    def _raise_ended(self, ended: dict[str, Any]) -> None:
        self._shared.add("heard", 1)
        error = EndedError(f"the run was ended on {ended['name']}: {ended['line']}")
        error.exit_code = ended["code"]
        raise error

    def _wait_for_others(self, group: WorkerGroup) -> None:
        """After the last epoch: the store must not end before all hosts have seen that the run is over."""
        with suppress(RuntimeError, RendezvousError):  # its host has ended, which it does when all have
            self._round.add("finished", 1)
            while self._round.add("finished", 0) < (group.group_world_size or 1) and not self.hosts.changes()[1]:
                self._stop_if_ended()
                time.sleep(LOOK_SECONDS)
            self._shared.compare_set("ended", "", self._ended(0, "it is finished"))

    def _stop(self, seconds: float) -> None:
        """Let the processes save and end, within `seconds`, and kill what is left."""
        if self._pcontext is None:
            return
        processes = [handler.proc for handler in cast(Any, self._pcontext).subprocess_handlers.values()]
        for process in processes:  # not to its group: workers that load images ignore other signals only
            process.send_signal(HOSTS_CHANGE)
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(LOOK_SECONDS)
        self._pcontext.close(signal.SIGKILL)

    def _keep_in_touch(self) -> None:
        """In a thread: end where the store is out of reach. torch's own calls wait without end where a link is cut."""
        heard = time.monotonic()
        while time.monotonic() - heard < STORE_SECONDS:
            if answers(self._endpoint):
                heard = time.monotonic()
            if self.over.wait(BEAT_SECONDS / 5):
                return
        sys.stderr.write(f"yoloyard: {lost_line(self._endpoint)}\n")
        if self._pcontext:
            self._pcontext.close(signal.SIGTERM, int(HANGING_SECONDS))
        os._exit(1)


def lost_line(endpoint: str) -> str:
    """What the user reads where a host has lost the others."""
    return (
        f"{platform.node()} has lost the other hosts: nothing answers at --rendezvous {endpoint}. The same command "
        "brings this host back in; where the host of the rendezvous has died, start the run again with --resume"
    )
