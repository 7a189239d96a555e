"""GPUs: are they there and free, do driver and wheel serve them, can containers have them."""

import re
from collections.abc import Iterator
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.machines.containers.gpus import CONFIGURE
from yoloyard.machines.doctor import Finding
from yoloyard.machines.environment.nvml import DRIVER_NOT_LOADED, LIBRARY_MISMATCH, LIBRARY_NOT_FOUND, UNKNOWN_ERROR
from yoloyard.machines.image.versions import best_tag, code_for, number

# The first driver with which every runtime of a CUDA major version works ("CUDA minor version compatibility",
# table 1 of NVIDIA's "CUDA Compatibility"). What must be compiled for the GPU at run time (PTX) is left out of that.
FIRST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
TAKEN_SHARE, FULL_SHARE = 0.1, 0.8  # of a GPU's memory in use by others
DRIVER_BYTES = 1.5e9  # that NVML may count as used on an idle GPU
INSTALL = (
    "install the package nvidia-container-toolkit on the host (after adding NVIDIA's package source: "
    "docs.nvidia.com/datacenter/cloud-native/container-toolkit), then: "
)


def check(facts: dict[str, Any]) -> list[Finding]:
    nvml, torch = facts["nvml"], facts["torch"]
    findings = [_visible(facts)]
    gpus = [gpu for gpu in nvml["gpus"] if not gpu["error"]]
    if gpus:
        findings.append(_driver(nvml, torch, gpus))
    if torch["architectures"]:
        findings += [_architecture(gpu, torch, nvml) for gpu in gpus]
    for gpu in gpus:
        findings += [_free(gpu, facts["processes"], facts["machine"]["container"]), _health(gpu)]
    return [*findings, *_containers(facts["machine"])]


def _visible(facts: dict[str, Any]) -> Finding:
    """Can every GPU of the machine be used? If not: the one reason, found from the outside in."""
    title, machine, gpus = "GPUs in sight", facts["machine"], facts["nvml"]["gpus"]
    cards, nodes, module = (machine["nvidia"][name] for name in ("cards", "nodes", "module"))
    broken = [gpu for gpu in gpus if gpu["error"]]
    answer = facts["nvml"]["error"] or (broken[0]["error"] if broken else None)
    code, said = (answer["code"], f'NVML says "{answer["text"]}"') if answer else (0, "")
    seen = f"kernel module {module}" if module else "NVIDIA device node"
    if cards:
        seen = f"NVIDIA card on the PCI bus at {', '.join(card['address'] for card in cards)}"

    def problem(evidence: str, remedy: str, check: str = "gpu-visible") -> Finding:
        return Finding(check, title, "problem", evidence, remedy)

    if code == UNKNOWN_ERROR and machine["container"] and nodes:
        evidence = f"{said} in this container, though {', '.join(nodes)} is there: the container's right to the "
        evidence += "devices was taken away, as a reload of systemd or of the cgroups does"
        remedy = "restart the container (yoloyard down, yoloyard up); for good: start it by CDI "
        remedy += '(--device nvidia.com/gpu=all), or set "exec-opts": ["native.cgroupdriver=cgroupfs"] in '
        return problem(evidence, f"{remedy}/etc/docker/daemon.json", "container-lost-gpu")
    if code == LIBRARY_MISMATCH:
        evidence = f"{said}: the driver's files were updated, the kernel still runs {module or 'the old one'}"
        return problem(evidence, "sudo reboot", "driver-mismatch")
    if broken:
        remedy = "look for Xid with `sudo dmesg | grep -i xid`; reboot; if it comes back, the GPU or its slot is faulty"
        return problem(f"GPU {', '.join(str(gpu['index']) for gpu in broken)} does not answer; {said}", remedy)
    if gpus:
        sizes = [f" ({gpu['memory_total'] / 2**30:.0f} GiB)" if gpu["memory_total"] else "" for gpu in gpus]
        named = ", ".join(f"{gpu['name']}{size}" for gpu, size in zip(gpus, sizes, strict=True))
        if len(cards) > len(gpus) and not machine["container"]:
            evidence = f"{len(gpus)} of {len(cards)} NVIDIA cards on the PCI bus answer: {named}"
            return Finding("gpu-visible", title, "warning", evidence, "sudo dmesg | grep -i -e nvrm -e xid")
        return Finding("gpu-visible", title, "ok", named)
    if machine["nvidia"]["nouveau"]:
        remedy = "install NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install), which turns nouveau off, and reboot"
        return problem("the kernel drives the NVIDIA card with nouveau, which knows no CUDA", remedy, "nouveau")
    if not cards and not nodes and not module:
        evidence = "no NVIDIA GPU on the PCI bus, no driver: training runs on the CPU"
        return Finding("gpu-visible", title, "skipped", evidence)
    if machine["container"] and not any(re.fullmatch(r"nvidia\d+|dxg", node) for node in nodes):
        remedy = "start it with GPUs: yoloyard up, docker run --gpus all, or podman run --device nvidia.com/gpu=all"
        return problem(f"the machine has an NVIDIA GPU ({seen}), but this container was started without it", remedy)
    if answer and code is None:
        return Finding("gpu-visible", title, "skipped", answer["text"], "pip install nvidia-ml-py")
    if machine["container"] and code == LIBRARY_NOT_FOUND:
        evidence = f"{', '.join(nodes)} is in this container, but not the driver's libraries; {said}"
        start = "start it by the NVIDIA Container Toolkit (--gpus all)"
        return problem(evidence, f"set NVIDIA_DRIVER_CAPABILITIES=compute,utility and {start}")
    remedy = "install NVIDIA's driver on the host (Ubuntu: sudo ubuntu-drivers install) and reboot"
    if code == DRIVER_NOT_LOADED:
        remedy = "sudo modprobe nvidia (`sudo dmesg | grep -i nvrm` says why it fails: Secure Boot, a new kernel)"
    loaded = "" if module else "; its kernel module is not loaded"
    return problem(f"{seen}{loaded}; {said or 'no GPU answers'}", remedy)


def _driver(nvml: dict[str, Any], torch: dict[str, Any], gpus: list[dict[str, Any]]) -> Finding:
    check, title = "driver-too-old", "NVIDIA driver and CUDA runtime"
    driver, served, built = nvml["driver"], nvml["cuda"], torch["cuda"]
    evidence = f"driver {driver} serves CUDA {served or '(unknown)'}; "
    if torch["error"]:
        return Finding(check, title, "skipped", f"{evidence}torch can't be imported: {torch['error']}")
    evidence += f"torch {torch['version']} was built "
    if built is None:
        return Finding(check, title, "skipped", f"{evidence}without CUDA")
    evidence += f"for CUDA {built}"
    if served and number(served) >= number(built):
        return Finding(check, title, "ok", evidence)
    major = number(built)[0]
    first = FIRST_DRIVER.get(major)
    if first and number(driver) >= number(first):
        compiled = [gpu["name"] for gpu in gpus if code_for(gpu["capability"], torch["architectures"]) == "ptx"]
        if not compiled:
            return Finding(check, title, "ok", f"{evidence}, and any CUDA {major} works from driver {first} on")
        evidence += f", and the wheel has only PTX for {compiled[0]}, which a driver of the same CUDA must compile"
    remedy = f"a newer driver on the host{f' (at least {first})' if first else ''}, or {_tag(driver, gpus)}"
    return Finding(check, title, "problem", evidence, remedy)


def _tag(driver: str, gpus: list[dict[str, Any]]) -> str:
    """The image that fits this driver and all GPUs, as a remedy."""
    try:
        tag = best_tag(driver, [gpu["capability"] for gpu in gpus if gpu["capability"]])
    except UserError as error:
        return f"another machine: {error}"
    return f"the image {tag.name} (yoloyard up --tag {tag.name}; torch {tag.torch}, CUDA {tag.cuda or 'none'})"


def _architecture(gpu: dict[str, Any], torch: dict[str, Any], nvml: dict[str, Any]) -> Finding:
    title, capability = f"GPU {gpu['index']} and the wheel of torch", gpu["capability"]
    if capability is None:
        return Finding("gpu-architecture", title, "skipped", f"{gpu['name']} doesn't say its compute capability")
    how, built = code_for(capability, torch["architectures"]), " ".join(torch["architectures"])
    evidence = f"{gpu['name']} has compute capability {capability}; torch {torch['version']} holds {built}"
    if how == "binary":
        return Finding("gpu-architecture", title, "ok", evidence)
    remedy = f"use {_tag(nvml['driver'], [gpu])}"
    if how == "ptx":
        evidence += "; its PTX is compiled at the first start, which takes minutes"
        return Finding("gpu-architecture", title, "warning", evidence, remedy)
    numbers = [int(digits) for digits in re.findall(r"\bsm_(\d+)", built)]
    age = "old" if numbers and number(capability)[0] * 10 + number(capability)[1] < min(numbers) else "new"
    return Finding(f"gpu-too-{age}", title, "problem", f"{evidence}: the GPU is too {age} for this wheel", remedy)


def _free(gpu: dict[str, Any], names: dict[int, str | None], container: str | None) -> Finding:
    check, title, mode = "gpu-taken", f"GPU {gpu['index']} is free", gpu["compute_mode"]
    used, total, processes = gpu["memory_used"], gpu["memory_total"], gpu["processes"]
    if total is None:
        return Finding(check, title, "skipped", f"{gpu['name']} shares the memory of the machine")
    evidence = f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB are in use"
    if mode != "prohibited" and not processes and used <= max(TAKEN_SHARE * total, DRIVER_BYTES):
        return Finding(check, title, "ok", evidence)
    if processes:
        who = [f"{names.get(each['pid']) or 'not seen from here'} (process {each['pid']})" for each in processes]
        evidence += f" by {', '.join(who)}"
        remedy = f"wait for it or end it (kill {processes[0]['pid']}), or take another GPU: --device"
    else:
        remedy = "find who it is with nvidia-smi on the host, or take another GPU: --device"
        evidence += " by nobody who is seen from here"
        evidence += " (a container sees its own processes only)" if container else ""
    if mode == "prohibited" or (mode == "exclusive" and processes):
        default = f"sudo nvidia-smi -i {gpu['index']} -c DEFAULT"
        return Finding(check, title, "problem", f"{evidence}; its compute mode is {mode}", default)
    return Finding(check, title, "problem" if used > FULL_SHARE * total else "warning", evidence, remedy)


def _health(gpu: dict[str, Any]) -> Finding:
    check, title, index = "gpu-health", f"GPU {gpu['index']} is healthy", gpu["index"]
    if errors := gpu["uncorrected_memory_errors"]:
        evidence = f"{errors} memory errors that could not be corrected since the driver started"
        remedy = f"sudo nvidia-smi --gpu-reset -i {index}, or reboot; if they come back, have the GPU exchanged"
        return Finding(check, title, "problem", evidence, remedy)
    if gpu["mig"] and not gpu["mig_instances"]:
        remedy = f"sudo nvidia-smi -i {index} -mig 0, or make instances: sudo nvidia-smi mig -cgi 0 -C"
        return Finding(check, title, "problem", "MIG is on, but there is no instance: CUDA sees nothing", remedy)
    if gpu["throttled_by"]:
        remedy = "check its cooling and power supply; nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
        return Finding(check, title, "warning", f"slowed by {', '.join(gpu['throttled_by'])}", remedy)
    return Finding(check, title, "ok", "no memory errors, full clocks")


def _containers(machine: dict[str, Any]) -> Iterator[Finding]:
    """Whether each engine can give GPUs to containers; inside a container the toolkit is the host's."""
    check, title = "container-toolkit", "GPUs for containers"
    engines = machine["engines"]
    names, toolkit, runtimes, cdi = (engines[key] for key in ("engines", "toolkit", "docker_runtimes", "cdi"))
    reason = f"this is a container itself ({machine['container']})" if machine["container"] else ""
    if not reason and not machine["nvidia"]["cards"] and not machine["nvidia"]["nodes"]:
        reason = "there is no NVIDIA GPU"
    if reason or not names:
        yield Finding(check, title, "skipped", reason or "there is no docker and no podman")
        return
    evidence = f"toolkit: {', '.join(toolkit) or 'none'}; CDI: {', '.join(cdi) or 'none'}; "
    evidence += f"runtimes in /etc/docker/daemon.json: {', '.join(runtimes) or 'none'}"
    for name in names:
        of_engine, command = f"{title} of {name}", CONFIGURE[name]
        if not toolkit:
            yield Finding(check, of_engine, "problem", evidence, INSTALL + command)
        elif cdi or (name == "docker" and "nvidia" in runtimes):
            yield Finding(check, of_engine, "ok", evidence)
        elif name == "docker" and "nvidia-container-runtime-hook" in toolkit:  # Docker finds it by its name
            by_hook = f"{evidence}: docker run --gpus works, --runtime=nvidia does not"
            yield Finding(check, of_engine, "warning", by_hook, command)
        else:
            yield Finding(check, of_engine, "problem", evidence, command)
