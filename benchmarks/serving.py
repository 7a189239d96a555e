"""`yoloyard serve` beside FastAPI with the reference, on the same weights and image: 1, 8 and 32 clients in turns.

python benchmarks/serving.py --weights yolo11n.pt --image street.jpg --reference-python .venv-bench/bin/python

Each client sends its next request when it has its answer. Both servers run all the time; the one whose turn it is not
has nothing to do. Linux only: the largest memory of a turn is what the kernel has counted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from side_by_side import HERE, LOGS, Row, arguments_of, own_environment, write_results

CLIENTS = (1, 8, 32)
BOUNDARY = "of-a-form"
START_SECONDS = 120
UNITS = {
    "requests": ("requests/s", None, True),
    "cpu": ("CPU s a request", 0.5, False),
    "p50": ("ms, half of the requests", None, False),
    "p99": ("ms, 99 of 100 requests", None, False),
    "memory": ("MB, largest", None, False),
}


def main() -> None:
    arguments = arguments_of(
        "Serve the same weights in turns.",
        weights={"type": Path, "required": True, "help": "a .pt file of the reference"},
        image={"type": Path, "required": True, "help": "the image file that all clients send"},
        export={"type": Path, "help": "an export of these weights, which ours serves instead of them"},
        seconds={"type": float, "default": 5.0, "help": "of a turn"},
    )
    python = arguments.reference_python
    LOGS.mkdir(parents=True, exist_ok=True)
    imported = LOGS / "serving.safetensors"
    imported.unlink(missing_ok=True)
    importing = [python, "-m", "yoloyard", "import", arguments.weights, "--out", imported]
    subprocess.run(importing, check=True, env=own_environment())
    kind = f"{arguments.export.suffix[1:]} file" if arguments.export else "torch"
    form = (
        (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        + arguments.image.read_bytes()
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    with contextlib.ExitStack() as servers:
        ports = [free_port(), free_port()]
        commands = [
            [python, "-m", "yoloyard", "serve", arguments.export or imported, "--port", ports[0]],
            [python, HERE / "sides" / "serving_theirs.py", arguments.weights.resolve(), ports[1]],
        ]
        sides = [
            servers.enter_context(server([*map(str, command)], port, form))
            for command, port in zip(commands, ports, strict=True)
        ]
        rows = []
        for clients in CLIENTS:
            found: list[list[dict[str, float]]] = [[], []]
            for turn in range(-1, arguments.repeats):
                for answers, process, port in zip(found, sides, ports, strict=True):
                    figures = load(process, port, form, clients, arguments.seconds)
                    if turn >= 0:
                        answers.append(figures)
            for name, (unit, goal, more_is_better) in UNITS.items():
                ours, theirs = ([each[name] for each in answers] for answers in found)
                what = f"{clients} client{'s' * (clients > 1)}"
                rows.append(Row(what, unit, ours, theirs, goal, more_is_better, f"{name}; ours: {kind}"))
    write_results("serving", rows, python)


@contextlib.contextmanager
def server(command: list[str], port: int, form: bytes) -> Iterator[psutil.Process]:
    """A server that answers, until the end of the context; what it prints goes to its log."""
    with (LOGS / f"serving-{port}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=own_environment())
        try:
            ends = time.monotonic() + START_SECONDS
            while True:
                try:
                    predict(http.client.HTTPConnection("127.0.0.1", port), form)
                    break
                except ConnectionError:
                    if process.poll() is not None or time.monotonic() > ends:
                        sys.exit(f"{' '.join(command)} does not answer; its output is in {log.name}")
                    time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def predict(connection: http.client.HTTPConnection, form: bytes) -> None:
    """One request. Raises RuntimeError where the answer is no list of detections."""
    connection.request("POST", "/predict", form, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200 or "detections" not in json.loads(content):
        raise RuntimeError(f"{answer.status}: {content[:200]!r}")


def load(process: psutil.Process, port: int, form: bytes, clients: int, seconds: float) -> dict[str, float]:
    """What a server does for so many clients in so many seconds, by the names of UNITS."""
    taken: list[float] = []
    failed: list[Exception] = []
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the largest memory begins again
    cpu, began = process.cpu_times(), time.perf_counter()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            while time.perf_counter() < began + seconds:
                started = time.perf_counter()
                predict(connection, form)
                taken.append(time.perf_counter() - started)
        except (OSError, RuntimeError, ValueError) as error:
            failed.append(error)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"a request to port {port} has failed: {failed[0]}")
    wall, after = time.perf_counter() - began, process.cpu_times()
    status = Path(f"/proc/{process.pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    taken.sort()
    return {
        "requests": len(taken) / wall,
        "cpu": (after.user + after.system - cpu.user - cpu.system) / len(taken),
        "p50": 1000 * taken[len(taken) // 2],
        "p99": 1000 * taken[min(len(taken) - 1, int(len(taken) * 0.99))],
        "memory": kilobytes / 1000,
    }


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
