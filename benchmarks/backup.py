"""What copies at an object store cost, and how they fare when requests go wrong.

    PYTHONPATH=tests:tests/storage python benchmarks/backup.py

Sends ten checkpoints of 20 MB, each with 10 MB that are new, to an S3 server (moto's) behind a proxy in which requests
go wrong. Prints for each fault how many requests failed, how many attempts the ten copies took, the bytes sent for each
byte that is new, and whether the newest can be fetched. Then how soon a copy arrives after a server was down for a
minute, what is said of a wrong beginning and how soon, the bytes sent for an unchanged checkpoint, and how long the
training thread takes to keep the files of a checkpoint.
"""

import contextlib
import os
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import obstore.exceptions
from copying import S3, claimed, files_of, send

from object_store import CREDENTIALS, Proxy, Request, make_empty, no_fault, s3_server
from yoloyard.common.errors import UserError
from yoloyard.common.files import link_or_copy
from yoloyard.storage.address import reason
from yoloyard.storage.fetch import fetch_run

NEW_BYTES = 10_000_000
DOWN_SECONDS = 60
CHECKPOINTS = 10
FAULTS: dict[str, Any] = {
    "none": None,
    "every fifth answer is 500": (500, "InternalError"),
    "every fifth answer is 503": (503, "SlowDown"),
    "every fifth connection is cut in the middle": "cut",
    "every fifth answer is lost": "lost",
    "a byte changes in every fifth file or part": "flip",
    "every request is slow (0.2 s and 20 MB/s)": "slow",
}


def under(fault: Any, proxy: Proxy, folder: Path) -> str:
    """Ten checkpoints under this fault, as a row of the table."""
    chance, numbers = random.Random(1), 1.0 if fault == "slow" else 0.2

    def decide(request: Request) -> Any:
        is_content = request.method == "PUT" and "/parts/" in request.path
        return fault if (is_content or fault != "flip") and chance.random() < numbers else None

    copies, attempts, before = claimed(f"{S3}/{folder.name}"), 0, (proxy.sent_bytes, proxy.failed)
    kept = os.urandom(NEW_BYTES)
    proxy.fault = decide if fault else no_fault
    began = time.perf_counter()
    for epoch in range(1, CHECKPOINTS + 1):
        files = files_of(folder, model=os.urandom(NEW_BYTES), best=kept, state=str(epoch).encode())
        while not copies.manifests or copies.manifests[-1].epoch < epoch:
            attempts += 1
            with contextlib.suppress(UserError, obstore.exceptions.BaseError):
                send(copies, folder, files, epoch)
    seconds = time.perf_counter() - began
    proxy.fault = no_fault
    fetched = fetch_run(f"{S3}/{folder.name}", None, folder / "runs") / "checkpoints/last/model"
    is_whole = fetched.read_bytes() == (folder / "checkpoints/last/model").read_bytes()
    ratio = (proxy.sent_bytes - before[0]) / (NEW_BYTES * (CHECKPOINTS + 1))
    row = f"{proxy.failed - before[1]} requests failed, {attempts} attempts, {ratio:.2f} bytes sent a new byte"
    return f"{row}, {seconds:.0f} s, newest fetched whole: {is_whole}"


def after_a_minute(proxy: Proxy, folder: Path) -> str:
    """A checkpoint that is sent while the server is down."""
    copies, files = claimed(f"{S3}/{folder.name}"), files_of(folder, model=os.urandom(NEW_BYTES))
    proxy.stop()
    threading.Timer(DOWN_SECONDS, proxy.start).start()
    began, attempts = time.perf_counter(), 0
    while not copies.manifests:
        attempts += 1
        with contextlib.suppress(UserError, obstore.exceptions.BaseError):
            send(copies, folder, files)
    seconds = time.perf_counter() - began - DOWN_SECONDS
    return f"{attempts} attempts, arrived {seconds:.0f} s after the server was back"


def at_the_beginning(proxy: Proxy, fault: Any, address: str = f"{S3}/beginning") -> str:
    """What is said before the first epoch, and how soon."""
    proxy.fault, began = lambda request: fault, time.perf_counter()
    try:
        claimed(address)
    except (UserError, OSError, obstore.exceptions.BaseError) as error:
        return f"after {time.perf_counter() - began:.2f} s: {reason(error)}"
    finally:
        proxy.fault = no_fault
    return "nothing is said"


def main() -> None:
    """Print all rows."""
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as place, s3_server() as port:
        os.environ["YOLOYARD_CACHE"] = f"{place}/cache"
        make_empty(port)
        proxy = Proxy(port)
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        for number, (name, fault) in enumerate(FAULTS.items()):
            folder = Path(place, f"fault-{number}")
            print(f"{name}: {under(fault, proxy, folder)}", flush=True)
        print(f"down for {DOWN_SECONDS} s: {after_a_minute(proxy, Path(place, 'down'))}")
        print(f"wrong credentials: {at_the_beginning(proxy, (403, 'SignatureDoesNotMatch'))}")
        print(f"a clock that is off: {at_the_beginning(proxy, (403, 'RequestTimeTooSkewed'))}")
        print(f"no such bucket: {at_the_beginning(proxy, None, 's3://nobody-has-it/run')}")
        folder = Path(place, "fault-0")
        copies, files = claimed(f"{S3}/fault-0"), files_of(folder)
        files = dict(copies.manifests[-1].files)
        before = proxy.sent_bytes
        send(copies, folder, files, CHECKPOINTS)
        print(f"an unchanged checkpoint: {proxy.sent_bytes - before} bytes sent")
        seconds = []
        for number in range(200):
            target = Path(place, "links", str(number))
            began = time.perf_counter()
            target.mkdir(parents=True)
            for index in range(16):  # as many files as a run has
                link_or_copy(folder / "checkpoints/last/model", target / str(index))
            seconds.append(time.perf_counter() - began)
        print(f"keeping the files of a checkpoint: {1e3 * statistics.median(seconds):.2f} ms in the training thread")
        proxy.stop()


if __name__ == "__main__":
    main()
