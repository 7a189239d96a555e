"""What a machine with a CUDA GPU makes of a training: one command, below eight minutes, a table, and JSON beside it.

    python benchmarks/gpu.py              on the GPU; --out FILE.json, default benchmarks/results/gpu.json
    python benchmarks/gpu.py --rehearse   the same at tiny sizes on the CPU, in a few minutes

torch, NumPy, OpenCV and this repository are all that is needed; with the packages of the command line whole runs are
checked as well. With pytest the tests marked `gpu` are run, without it the same checks one by one. What takes too much
memory or time is a result like others: checks and compiled networks have processes of their own, which may be ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "evaluation")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu_parts.checks import answers, checks, of_steps  # noqa: E402
from gpu_parts.common import FULL, MODELS, MODES, REHEARSAL, Sizes, dtype_of  # noqa: E402
from gpu_parts.items import of_items  # noqa: E402
from gpu_parts.runs import of_runs  # noqa: E402
from gpu_parts.speed import (  # noqa: E402
    all_steps,
    compiled_steps,
    cores,
    loader_speeds,
    measure_steps,
    peak_of,
    train_demo,
    with_share,
)

VERDICTS = {True: "ok", False: "FAILED", None: "-"}
PARTS = {"steps": of_steps, "items": of_items, "runs": of_runs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training on this machine's GPU.")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    parser.add_argument("--checks", choices=PARTS, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--compiled", nargs=2, help=argparse.SUPPRESS)  # a model and a batch, in a process of its own
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --rehearse does the same at tiny sizes on the CPU")
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    sizes = REHEARSAL if arguments.rehearse else FULL
    if arguments.checks:
        for answer in answers(PARTS[arguments.checks](device)):
            print(json.dumps(answer), flush=True)
    elif arguments.compiled:
        model, batch = arguments.compiled
        print(json.dumps(measure_steps(device, model, "amp", int(batch), sizes, True)))
    else:
        default = Path("runs", "gpu-rehearsal.json") if arguments.rehearse else ROOT / "benchmarks/results/gpu.json"
        out = arguments.out or default
        out.parent.mkdir(parents=True, exist_ok=True)
        print(table_of(measure_all(device, sizes, out)))
        print(f"all figures: {out}")


def measure_all(device: torch.device, sizes: Sizes, out: Path) -> dict[str, Any]:
    """All figures; what there is after each part is in the JSON file `out` already."""
    end = time.monotonic() + sizes.total
    results: dict[str, Any] = {"measured": date.today().isoformat(), "machine": machine(device)}

    def keep(name: str, value: Any) -> None:
        results[name] = value
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: done, {end - time.monotonic():.0f} s are left", file=sys.stderr, flush=True)

    keep("checks", checks(device, sizes))
    keep("peak", {mode: peak_of(device, dtype_of(device, mode), sizes) for mode in MODES})
    keep("steps", all_steps(device, sizes, results["peak"]))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["YOLOYARD_CACHE"] = str(Path(folder, "cache"))
        keep("loader", loader_speeds(device, sizes, Path(folder)))
        keep("demo", train_demo(device, sizes, Path(folder)))
    compiled = []
    for batch, model in itertools.product(sizes.compiled_batches, sizes.models):
        limit = min(sizes.compiled, end - time.monotonic())
        compiled.append(with_share(compiled_steps(device, model, batch, limit), results["peak"], sizes))
        keep("compiled", compiled)
    return results


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "device": "cpu",
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "amp": str(dtype_of(device, "amp")),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "gigabytes": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def table_of(results: dict[str, Any]) -> str:
    """All figures for a reader, as Markdown."""
    facts = results["machine"]
    lines = [
        f"{facts['device']}, torch {facts['torch']}, {facts['cores']} cores, {results['measured']}",
        "",
        *(f"- {VERDICTS[check['holds']]}: {check['check']} {check['said']}".rstrip() for check in results["checks"]),
        "",
        *(f"- product of matrices, {mode}: {peak / 1e12:.3g} TFLOP/s" for mode, peak in results["peak"].items()),
        "",
        "ratios: to float32 with the same batch",
        "",
        "| model | batch | mode | step, ms | images/s | share of peak | memory, GB | time, ratio | memory, ratio |",
        "| --- " * 9 + "|",
    ]
    plain = {(row["model"], row["batch"]): row for row in results["steps"] if row["mode"] == "float32"}
    rows = [*results["steps"], *({**row, "mode": "amp + compile"} for row in results["compiled"])]
    order = {"float32": 0, "amp": 1, "amp + compile": 2}
    for row in sorted(rows, key=lambda row: (MODELS.index(row["model"]), row["batch"], order[row["mode"]])):
        cells = [row["model"], row["batch"], row["mode"]]
        if "seconds" not in row:
            lines.append(f"| {' | '.join(map(str, cells))} | {row['error']} |" + " |" * 5)
            continue
        base = plain.get((row["model"], row["batch"]), {})
        cells += [f"{1000 * row['seconds']:.1f}", f"{row['images_per_second']:.0f}", f"{row['share_of_peak']:.1%}"]
        cells += [number(row.get("gigabytes"))]
        cells += [number(row.get(name), base.get(name)) for name in ("seconds", "gigabytes")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [f"- {row['model']}: {line}" for row in results["compiled"] for line in row.get("said", [])]
    lines += ["", "| workers | training images/s from the loader |", "| --- | --- |"]
    lines += [f"| {row['workers']} | {row['images_per_second']:.0f} |" for row in results["loader"]]
    demo = results["demo"]
    lines += ["", f"demo: {demo['epochs']} epochs of {demo['images']} images in {sum(demo['seconds']):.1f} s"]
    lines[-1] += f", mAP50-95 {demo['figures']['map50_95']:.3f}, mAP50 {demo['figures']['map50']:.3f}"
    return "\n".join(lines)


def number(value: float | None, base: float | None = 1.0) -> str:
    """Two digits of a figure or of its ratio to another; a dash where there is none."""
    return "-" if value is None or not base else f"{value / base:.2f}"


if __name__ == "__main__":
    main()
