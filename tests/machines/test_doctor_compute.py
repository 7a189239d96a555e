"""The doctor's computing: the CPU is tried for real; what crashes, hangs or computes wrongly is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from yoloyard.machines.doctor import Finding, compute
from yoloyard.machines.environment import computing

HEALTHY: list[dict[str, Any]] = [
    {"probe": "memory", "error": None, "free": 20 << 30, "total": 24 << 30},
    {"probe": "matmul float32", "error": None, "largest": 1e-7, "tolerance": 1e-5},
    {"probe": "convolution float16", "error": None, "largest": 1e-3, "tolerance": 5e-3},
    {"probe": "bfloat16", "error": None, "native": True},
    {"probe": "training float16", "error": None, "first": 0.7, "last": 0.6},
]
SUM = {"backend": "nccl", "size": 2, "error": None, "wrong": 0, "said": "", "nccl": [2, 27, 3], "hostname": None}


def judged(probes: list[dict[str, Any]] = HEALTHY, **changed: Any) -> dict[str, Finding]:
    facts = {"devices": {"cuda:0": probes}, "peers": [], "together": SUM, **changed}
    return {finding.check: finding for finding in compute.check({"compute": facts})}


def changed(probe: str, **facts: Any) -> list[dict[str, Any]]:
    return [{**row, **facts} if row["probe"] == probe else row for row in HEALTHY]


@pytest.fixture(autouse=True)
def tf32_as_before() -> Iterator[None]:
    """What the probe, else in a process of its own, sets for all of the process is put back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_cpu_agrees_with_itself(precision: str) -> None:
    cpu = torch.device("cpu")
    for calculation, shapes in (
        (torch.matmul, ((64, 64), (64, 64))),
        (computing.convolve, ((2, 4, 16, 16), (8, 4, 3, 3))),
    ):
        found = computing.compare(cpu, precision, calculation, *shapes)
        assert 0 < found["largest"] <= found["tolerance"]


def test_a_device_that_computes_wrongly_is_found() -> None:
    def faulty(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        result = first @ second
        if result.dtype == torch.float32:  # the device's side; the other one is float64
            result[3, 5] += 1e-2 * result.abs().max()
        return result

    found = computing.compare(torch.device("cpu"), "float32", faulty, (64, 64), (64, 64))
    assert found["largest"] > found["tolerance"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_steps_learn(dtype: torch.dtype) -> None:
    found = computing.train(torch.device("cpu"), dtype)
    assert found["last"] < found["first"]


def test_a_machine_without_gpus_is_tried_for_real() -> None:
    found = compute.gather(0)
    verdicts = {finding.check: finding.verdict for finding in compute.check({"compute": found})}
    assert verdicts == dict.fromkeys(("compute", "mixed-precision", "training-step", "all-reduce"), "ok")
    assert found["together"]["backend"] == "gloo"


def test_a_crash_has_the_name_of_its_trial(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={tmp_path}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # Started with every Python below this folder: the matrix product in this process is a crash.
    (tmp_path / "sitecustomize.py").write_text("import torch, os\ntorch.matmul = lambda *each: os.abort()\n")
    found = compute.check(
        {"compute": {"devices": {"cuda:0": compute.try_device(str(python), "cpu")}, "peers": [], "together": SUM}}
    )
    assert [finding.verdict for finding in found] == ["problem", "skipped", "skipped", "ok"]
    assert "matmul float32: the process was killed by SIGABRT" in found[0].evidence


def test_a_healthy_gpu_has_nothing_but_ok() -> None:
    found = judged()
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert "20.0 of 24.0 GiB are free" in found["compute"].evidence
    assert "NCCL 2.27.3" in found["all-reduce"].evidence


@pytest.mark.parametrize(
    ("probes", "check", "evidence"),
    [
        (changed("matmul float32", largest=0.02), "compute", "matmul float32 is off by 0.02"),
        (changed("matmul float32", largest=float("nan")), "compute", "off by nan"),
        (changed("convolution float16", error="RuntimeError: cuDNN error"), "compute", "cuDNN error"),
        (changed("training float16", last=float("nan")), "training-step", "to nan"),
        (changed("training float16", error="no kernel image is available"), "training-step", "no kernel image"),
    ],
)
def test_what_is_wrong_with_a_gpu(probes: list[dict[str, Any]], check: str, evidence: str) -> None:
    finding = judged(probes)[check]
    assert (finding.verdict, bool(finding.remedy)) == ("problem", True)
    assert evidence in finding.evidence


def test_a_gpu_without_bfloat16_trains_in_float16() -> None:
    finding = judged(changed("bfloat16", native=False))["mixed-precision"]
    assert finding.verdict == "ok"
    assert "float16" in finding.evidence


def test_peers() -> None:
    row = {"probe": "0 to 1", "error": None, "reaches": True, "wrong": 0}
    assert judged(peers=[row])["peer-access"].verdict == "ok"
    assert "no peer access" in judged(peers=[{**row, "reaches": False}])["peer-access"].evidence
    finding = judged(peers=[{**row, "wrong": 7}])["peer-access"]
    assert (finding.verdict, "NCCL_P2P_DISABLE=1" in finding.remedy) == ("problem", True)


@pytest.mark.parametrize(
    ("facts", "more", "remedy"),
    [
        ({"error": "timed out"}, {"without_peers": SUM}, "NCCL_P2P_DISABLE=1"),
        (
            {"error": "x", "said": "NCCL WARN Error while creating shared memory segment /dev/shm/nccl"},
            {},
            "--shm-size",
        ),
        ({"error": "x", "hostname": "the name of this machine, a, has no address"}, {}, "/etc/hosts"),
        ({"wrong": 3}, {}, "NCCL_DEBUG=INFO"),
    ],
)
def test_a_sum_that_fails(facts: dict[str, Any], more: dict[str, Any], remedy: str) -> None:
    finding = judged(together={**SUM, **facts}, **more)["all-reduce"]
    assert finding.verdict == "problem"
    assert remedy in finding.remedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_are_tried_for_real() -> None:
    found = compute.check({"compute": compute.gather(torch.cuda.device_count())})
    assert {finding.verdict for finding in found} == {"ok"}
