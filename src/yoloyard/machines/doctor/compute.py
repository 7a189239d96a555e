"""Does each device compute correctly, in each precision, and do processes and GPUs reach each other?

Each device is probed in a process of its own with a time limit, since a driver can crash or hang.
"""

import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from yoloyard.machines.doctor import Finding
from yoloyard.machines.environment.packages import run_probes

DEVICE_SECONDS = 180  # for a device, its libraries loaded from a cold disk included
ALL_REDUCE_SECONDS = 120  # longer than the limit of the all-reduce itself, which names the reason
NO_PEERS = "export NCCL_P2P_DISABLE=1; for good: turn off the IOMMU (or PCIe ACS) in the firmware"


def gather(devices: int, python: Path | None = None) -> dict[str, Any]:
    """Try the CPU and `devices` GPUs, then all of them together; on a machine without GPUs two processes."""
    command = str(python or sys.executable)
    names = ["cpu", *(f"cuda:{index}" for index in range(devices))]
    found: dict[str, Any] = {"devices": {name: try_device(command, name) for name in names}}
    found["peers"] = try_device(command, "peers", str(devices)) if devices > 1 else []
    backend, size = ("nccl", devices) if devices > 1 else ("gloo", 2)
    found["together"] = all_reduce(command, backend, size)
    if backend == "nccl" and found["together"]["error"]:
        found["without_peers"] = all_reduce(command, backend, size, NCCL_P2P_DISABLE="1")
    return found


def try_device(python: str, *arguments: str) -> list[dict[str, Any]]:
    """The probes of a device in their order; one during which the process ended has that as its error."""
    return run_probes(python, "computing.py", *arguments, seconds=DEVICE_SECONDS)[0]


def all_reduce(python: str, backend: str, size: int, **variables: str) -> dict[str, Any]:
    """A sum over `size` processes; `error` of the first that failed, and what was written to standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def run(rank: int) -> tuple[list[dict[str, Any]], str]:
        words = ("together", backend, str(rank), str(size))
        return run_probes(python, "computing.py", *words, seconds=ALL_REDUCE_SECONDS, variables=variables)

    with ThreadPoolExecutor(size) as threads:
        answers = list(threads.map(run, range(size)))
    rows = [rows[0] for rows, _ in answers]  # the second is about a crash after it
    found = {
        "backend": backend,
        "size": size,
        "error": next((row["error"] for row in rows if row["error"]), None),
        "wrong": sum(row.get("wrong", 0) for row in rows),
        "said": next((said[-1500:] for _, said in answers if said), ""),
        "nccl": next((row["nccl"] for row in rows if row.get("nccl")), None),
        "hostname": None,
    }
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        found["hostname"] = f"the name of this machine, {socket.gethostname()}, has no address ({error})"
    return found


def check(facts: dict[str, Any]) -> list[Finding]:
    """`facts["compute"]` as gathered; None where nothing was to be computed."""
    if facts["compute"] is None:
        return []
    found = [finding for device, probes in facts["compute"]["devices"].items() for finding in _device(device, probes)]
    if probes := facts["compute"]["peers"]:
        title, evidence = "Memory from GPU to GPU", "each GPU reaches the memory of the others"
        if apart := [row["probe"] for row in probes if not row.get("reaches")]:
            evidence = f"copies arrive whole, but by way of the host between GPUs {', '.join(apart)} (no peer access)"
        finding = Finding("peer-access", title, "ok", evidence)
        if bad := [row for row in probes if row["error"] or row["wrong"]]:
            evidence = f"GPU {bad[0]['probe']}: {bad[0]['error'] or 'a copy arrives with other values'}"
            finding = Finding("peer-access", title, "problem", evidence, NO_PEERS)
        found.append(finding)
    return [*found, _together(facts["compute"])]


def _device(device: str, probes: list[dict[str, Any]]) -> list[Finding]:
    """Three findings: whether it computes correctly, whether it has bfloat16, whether a small training goes well."""
    computing = "compute", f"Computing on {device}"
    failed = [row for row in probes if row["error"] and not row["probe"].startswith("training")]
    compared = [row for row in probes if "tolerance" in row]
    wrong = [
        f"{row['probe']} is off by {row['largest']:.1g} of the largest value, {row['tolerance']:.0e} is rounding"
        for row in compared
        if not row["largest"] <= row["tolerance"]  # NaN is wrong too
    ]
    if failed:
        evidence = f"{failed[0]['probe']}: {failed[0]['error']}"
        found = [Finding(*computing, "problem", evidence, _remedy(failed[0]))]
    elif wrong:
        remedy = "take the device out of use; a GPU: sudo nvidia-smi -q -d ECC, sudo dmesg | grep -i xid"
        found = [Finding(*computing, "problem", "; ".join(wrong), remedy)]
    else:
        kinds = ", ".join(dict.fromkeys(row["probe"].split()[1] for row in compared))
        evidence = f"matrix product and convolution agree with the CPU in {kinds}"
        if free := next((row for row in probes if row["probe"] == "memory" and row.get("total")), None):
            evidence += f"; {free['free'] / 2**30:.1f} of {free['total'] / 2**30:.1f} GiB are free"
        found = [Finding(*computing, "ok", evidence)]

    precision = "mixed-precision", f"Mixed precision on {device}"
    row = next((row for row in probes if row["probe"] == "bfloat16"), None)
    if row is None or row["error"]:
        found.append(Finding(*precision, "skipped", "the probes didn't come so far"))
    else:
        evidence = "bfloat16 by the hardware" if row["native"] else "no bfloat16 in hardware: --amp trains in float16"
        if device == "cpu":
            evidence = "bfloat16 is computed, slowly where the CPU has no code for it"
        found.append(Finding(*precision, "ok", evidence))

    training = "training-step", f"Training steps on {device}"
    rows = [row for row in probes if row["probe"].startswith("training")]
    if not rows:
        return [*found, Finding(*training, "skipped", "the probes didn't come so far")]
    for row in rows:
        if row["error"]:
            return [*found, Finding(*training, "problem", f"{row['probe']}: {row['error']}", _remedy(row))]
        if not row["last"] < row["first"]:
            evidence = f"{row['probe']}: the loss went from {row['first']:.4g} to {row['last']:.4g}"
            return [*found, Finding(*training, "problem", evidence, "train with --no-amp; tell us of this GPU")]
    shown = ", ".join(row["probe"].split()[1] for row in rows)
    return [*found, Finding(*training, "ok", f"the loss falls in {shown}")]


def _remedy(row: dict[str, Any]) -> str:
    error = row["error"]
    if "no kernel image" in error:
        return "another wheel or image, that has code for this GPU: see the finding on its architecture"
    if "out of memory" in error:
        return "end what uses the GPU: nvidia-smi"
    if "cudnn" in error.lower():
        return "unset LD_LIBRARY_PATH, else install torch again: see the findings on packages"
    if row["probe"] == "start":
        return "see the findings on torch and the driver"
    return "sudo dmesg | grep -i -e xid -e segfault names a fault of driver or hardware; else install torch again"


def _together(compute: dict[str, Any]) -> Finding:
    found = compute["together"]
    title = f"{found['size']} {'GPUs' if found['backend'] == 'nccl' else 'processes'} add up ({found['backend']})"
    if not found["error"] and not found["wrong"]:
        version = f", NCCL {'.'.join(map(str, found['nccl']))}" if found["nccl"] else ""
        return Finding("all-reduce", title, "ok", f"the sum is right{version}")
    evidence = found["error"] or f"{found['wrong']} values of the sum are wrong"
    lines = [line for line in found["said"].splitlines() if "NCCL WARN" in line]
    evidence += f" ({lines[0]})" if lines else ""
    without = compute.get("without_peers")
    if without and not without["error"] and not without["wrong"]:
        evidence += "; without access from GPU to GPU it works"
        remedy = NO_PEERS
    elif found["hostname"]:
        evidence += f"; {found['hostname']}"
        remedy = f"echo '127.0.1.1 {socket.gethostname()}' | sudo tee -a /etc/hosts, or export GLOO_SOCKET_IFNAME=lo"
    elif re.search("shm|shared memory", found["said"], re.IGNORECASE):
        remedy = "give the container more shared memory: --shm-size 8g"
    elif found["backend"] == "nccl":
        remedy = "NCCL_DEBUG=INFO yoloyard doctor shows how far it comes; export NCCL_SOCKET_IFNAME=lo on one machine"
    else:
        remedy = "export GLOO_SOCKET_IFNAME=lo"
    return Finding("all-reduce", title, "problem", evidence, remedy)
