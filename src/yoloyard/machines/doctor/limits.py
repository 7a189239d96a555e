"""What the system allows: shared memory, open files, locked memory, processes, CPUs, memory; and its clock."""

from collections.abc import Iterator
from typing import Any

from yoloyard.machines.doctor import Finding

WORKERS = 8  # of each GPU, as `train` has it unless told otherwise
# Batches of 16 images of 640 pixels: each worker makes 2 ahead and the trainer holds 2, for training and validation.
SHARED_BYTES = (2 * WORKERS + 2) * 2 * 16 * 3 * 640 * 640
OPEN_FILES = 256 + 32 * WORKERS  # of a training process: pipes, and a handle for each tensor on its way
THREADS = 16  # of each process
LOCKED_BYTES = 64 * 2**20
MEMORY_BYTES = 8 * 2**30  # of each GPU: a training process and its workers


def check(facts: dict[str, Any]) -> list[Finding]:
    machine, gpus = facts["machine"], len(facts["nvml"]["gpus"])
    training = f"training on {gpus} GPU(s) with {WORKERS} workers each" if gpus else "training on the CPU"
    memory, cpus, clock = machine["memory"], machine["cpus"], machine["clock"]
    found = [_shared_memory(machine, gpus, training), *_ulimits(machine, gpus)]

    quota = "" if cpus["quota"] is None else f" (a cgroup allows {cpus['quota']:g} of {cpus['allowed']})"
    evidence, remedy = f"{cpus['usable']:g} CPUs{quota}; {training} wants {gpus * WORKERS or 1}", ""
    if cpus["usable"] < gpus * WORKERS:
        fewer = max(1, int(cpus["usable"]) // gpus)
        remedy = f"--workers {fewer} and --cache ram, or a machine (a container: --cpus) with more CPUs"
    found.append(Finding("cpus", "CPUs for loading images", "warning" if remedy else "ok", evidence, remedy))

    usable, needed = min(memory["total"], memory["limit"] or memory["total"]), max(1, gpus) * MEMORY_BYTES
    limit = "" if usable == memory["total"] else f" (a cgroup's limit; the machine has {memory['total'] / 2**30:.1f})"
    evidence = f"{usable / 2**30:.1f} GiB{limit}; {training} wants {needed / 2**30:.0f} GiB"
    remedy = "" if usable >= needed else "fewer --workers, or more memory (a container: --memory)"
    found.append(Finding("memory", "memory", "warning" if remedy else "ok", evidence, remedy))

    if clock["synchronised"] is None:
        return [*found, Finding("clock", "clock", "skipped", f"the kernel doesn't tell: {clock['error']}")]
    if clock["synchronised"]:
        return [*found, Finding("clock", "clock", "ok", "a time server keeps it")]
    remedy = f"sudo timedatectl set-ntp true{' on the host' if machine['container'] else ''}"
    evidence = "no time server keeps it; a wrong clock makes certificates and signed requests to object stores fail"
    return [*found, Finding("clock", "clock", "warning", evidence, remedy)]


def _shared_memory(machine: dict[str, Any], gpus: int, training: str) -> Finding:
    check, title = "shared-memory", "shared memory (/dev/shm)"
    shared, needed = machine["shared_memory"], SHARED_BYTES * gpus
    if shared is None:
        return Finding(check, title, "skipped", "there is no /dev/shm")
    evidence = f"{shared['free'] / 2**20:.0f} of {shared['size'] / 2**20:.0f} MiB are free; "
    evidence += f"{training} wants {needed / 2**20:.0f} MiB (batches of 16 images of 640 pixels)"
    if shared["free"] >= needed:
        return Finding(check, title, "ok", evidence)
    size = f"size={-(-needed * 2 // 2**30)}g"
    remedy = f"sudo mount -o remount,{size} /dev/shm"
    if machine["container"]:
        remedy = f"start the container with --shm-{size} (docker, podman; shm_size in Compose), or yoloyard up"
    if gpus > 1:
        return Finding(check, title, "problem", f"{evidence}; NCCL fails without room in it", remedy)
    return Finding(check, title, "warning", f"{evidence}; batches go through pipes instead, which is slower", remedy)


def _ulimits(machine: dict[str, Any], gpus: int) -> Iterator[Finding]:
    processes = max(1, gpus) * (WORKERS + 1) * THREADS
    needs = [("nofile", "-n", OPEN_FILES, "open files"), ("nproc", "-u", processes, "processes and threads")]
    if machine["infiniband"]:
        needs.append(("memlock", "-l", LOCKED_BYTES, "locked memory in bytes, for InfiniBand"))
    for name, flag, needed, what in needs:
        soft, hard = machine["limits"][name]
        evidence, remedy = f"{'unlimited' if soft is None else soft}; training wants {needed}", ""
        if soft is not None and soft < needed:
            remedy = f"ulimit {flag} {needed // 1024 if name == 'memlock' else needed}"
            if hard is not None and hard < needed:
                remedy = f"raise the hard limit ({hard}) in /etc/security/limits.conf"
                if machine["container"]:
                    remedy = f"start the container with --ulimit {name}={needed}:{needed}"
        yield Finding(f"ulimit-{name}", f"limit of {what}", "problem" if remedy else "ok", evidence, remedy)
