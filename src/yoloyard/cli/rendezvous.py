"""The command `rendezvous`."""

import signal
import socket
from typing import Annotated

from cyclopts import Parameter

from yoloyard.common.errors import UsageError, UserError


def rendezvous(*, port: Annotated[int, Parameter(help="the port that hosts connect to")] = 29400) -> None:
    """Hold the place where the hosts of a run meet, on a host that stays. It holds no data of the run.

    Runs may come one after the other. It ends by Ctrl-C, and a run that is going on ends with it, all saved.
    """
    from yoloyard.training.distributed.store import serve

    if not 0 < port < 65536:
        raise UsageError(f"--port {port}: say a number from 1 to 65535, the same as in --rendezvous HOST:PORT")
    try:
        store = serve("localhost", port)  # noqa: F841  # it serves as long as it is there
    except RuntimeError as error:
        raise UserError(f"port {port} can't be served here: another program has it; say another --port") from error
    name = socket.gethostname()
    print(
        f"hosts of a run meet here: yoloyard train ... --nodes 1:4 --rendezvous {name}:{port}, on each. Ctrl-C ends it",
        flush=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pause()
