"""The store where the hosts of a run meet: who serves it, how others reach it, and which launch they agree on."""

import datetime
import os
import socket
import threading
import uuid
from contextlib import suppress

import torch.distributed as dist

from yoloyard.common.errors import UserError
from yoloyard.training.distributed.hosts import own_address, wait_for
from yoloyard.training.distributed.meeting import Meeting

BEAT_SECONDS = int(os.environ.get("YOLOYARD_BEAT_SECONDS", "5"))  # between signs of life of a host; tests lower it
JOIN_SECONDS = 120 * BEAT_SECONDS  # that the first host waits for the others
STORE_SECONDS = 6 * BEAT_SECONDS  # that an answer may take
CONNECT_SECONDS = 3.0


def meet(meeting: Meeting) -> tuple[dist.TCPStore, str]:
    """The store of a `meeting`, served here if its endpoint is here, and the address by which others reach this host.

    Raises UserError if nobody answers there in JOIN_SECONDS.
    """
    if not meeting.endpoint:
        return serve("127.0.0.1", 0), "127.0.0.1"
    host, port = parts(meeting.endpoint)
    if is_free_here(host, port) if meeting.is_head is None else meeting.is_head:
        with suppress(RuntimeError):  # another process of this host has it
            return serve("localhost", port), own_address(host, port)
    problem = wait_for(host, port, JOIN_SECONDS, "--rendezvous", "the same command or `yoloyard rendezvous`")
    if problem:
        raise UserError(problem)
    found: list[dist.TCPStore] = []

    def connect() -> None:
        limit = datetime.timedelta(seconds=STORE_SECONDS)
        with suppress(RuntimeError):
            found.append(dist.TCPStore(host, port, is_master=False, timeout=limit))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()  # since torch waits without end for an answer of another program
    thread.join(STORE_SECONDS)
    if not found:
        raise UserError(f"what answers at --rendezvous {meeting.endpoint} is another program; name another port")
    return found[0], own_address(host, port)


def serve(host: str, port: int) -> dist.TCPStore:
    """A store that this process serves at `port`, at any that is free if it is 0. Raises RuntimeError if it is taken.

    `host` is the name by which this process itself reaches it.
    """
    limit = datetime.timedelta(seconds=STORE_SECONDS)
    return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=limit)


def is_free_here(host: str, port: int) -> bool:
    """Is `host` an address of this host, and can `port` be served there?"""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError:  # also where the name can't be resolved, yet
        return False
    return True


def parts(endpoint: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, an IPv6 address without its brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def answers(endpoint: str) -> bool:
    """Does anything take connections at `endpoint`?"""
    with suppress(OSError):
        socket.create_connection(parts(endpoint), CONNECT_SECONDS).close()
        return True
    return False


def agreed_launch(store: dist.Store, run_id: str) -> str:
    """The id of the launch that goes on under `run_id`, the same on all hosts; a new one if the last has ended."""
    key, fresh = f"launch {run_id}", uuid.uuid4().hex
    name = bytes(store.compare_set(key, "", fresh)).decode()
    if store.check([f"{name}/ended"]):
        name = bytes(store.compare_set(key, name, fresh)).decode()
    return name
