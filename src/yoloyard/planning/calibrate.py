"""`yoloyard plan --calibrate RUN`: a run compared with what the plan says of it, and kept as that device's correction.

A figure of a plan is called measured where such a correction exists for the device and precision: it is modelled, and
then multiplied by what a run on such a device measured over what the plan said of that run.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.files import write_whole_text
from yoloyard.common.run_folder import RunFolder, read_json, read_run
from yoloyard.config.overrides import with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.planning.figures import Gpu, Precision, StepCost
from yoloyard.planning.gpus import cpu_device, find_gpu
from yoloyard.planning.hours import Correction, Images, estimate, is_cpu, rest_seconds, seconds_of
from yoloyard.planning.prices import config_folder

FILE = "calibrations.json"
TORCH_BYTES = 530e6  # of a process that trains on a CPU, torch itself (docs/performance.md)
WAITS = 0.05  # share of waiting from which loader processes decide the throughput
# Settings that may name files of another host, and decide no time.
ELSEWHERE = ("data", "weights", "transform", "device", "backup", "backup_endpoint")
FIGURES = ("speed/images_per_second", "speed/waiting_fraction", "speed/seconds", "memory/gigabytes", "threads")


@dataclass(frozen=True)
class Calibration:
    """A run and its plan."""

    run: Path
    device: Gpu
    precision: Precision
    rows: Mapping[str, tuple[float, float]]  # by what it is: as planned without a correction, as measured
    correction: Correction

    def lines(self) -> list[str]:
        """A table for the user."""
        table = [("", "planned", "measured", "ratio")]
        table += [(what, f"{one:.3g}", f"{two:.3g}", f"{two / one:.2f}") for what, (one, two) in self.rows.items()]
        head = f"{self.run} on {self.device.name}, {self.precision}"
        return [head, *(f"{what:<24}{one:>10}{two:>10}{ratio:>8}" for what, one, two, ratio in table)]


def calibrate(folder: Path) -> Calibration:
    """Compare a run with its plan. Raises UsageError or UserError if it can't be compared, with the reason."""
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.yaml")
    run = read_run(folder)
    if run.problems:
        raise UserError(f"{folder} is damaged: {run.problems[0]}")
    if not run.records:
        raise UserError(f"{folder} has no whole epoch yet, so there is nothing to compare: take a run that has one")
    if str(run.settings.get("nodes", "1")) != "1":
        raise UserError(f"{folder} ran on several hosts, whose network would be mixed in: take a run on one host")
    if lacking := [name for name in FIGURES if not all(record.get(name) is not None for record in run.records)]:
        raise UserError(f"{folder}/metrics.jsonl lacks '{lacking[0]}': an older version wrote it; take a newer run")
    records = run.records[1:] or run.records  # in the first epoch memory and algorithms are found
    device, precision, images, cores = _facts(folder, statistics.median_low(int(each["threads"]) for each in records))
    config, cost = step_of_run(run, precision, images.channels, is_cpu(device))
    host = (device, config.processes, 1, cores)
    planned = seconds_of(cost, config, images, *host, Correction())

    throughput = statistics.median(record["speed/images_per_second"] for record in records)
    waiting = statistics.median(record["speed/waiting_fraction"] for record in records)
    step = min(config.batch, images.train) / throughput
    together = planned.device + planned.exchange
    is_beside = not is_cpu(device) and config.workers > 0  # a step then waits only for what loading takes longer
    loader = step / planned.loader if is_beside else waiting * step / planned.loader
    if waiting <= (WAITS if is_beside else 0):
        loader = 1.0
    peak = max(record["memory/gigabytes"] for record in records) * 2**30
    plan = estimate(cost, config, images, *host)
    rows = {
        "throughput, images/s": (plan.images_per_second, throughput),
        "device in a step, s": (together, (1 - waiting) * step),
        "loader in a step, s": (planned.loader, loader * planned.loader),
        "memory, GB": ((cost.peak_bytes + TORCH_BYTES * is_cpu(device)) / 1e9, peak / 1e9),
    }
    rest, beside = 1.0, run.seconds - sum(record["speed/seconds"] for record in run.records)
    if run.state == "finished" and len(run.records) == config.epochs and beside > 0:
        rest = beside / rest_seconds(planned, config, Correction())
        rows["validation and rest, s"] = (rest_seconds(planned, config, Correction()), beside)
        rows["run, hours"] = (plan.hours, run.seconds / 3600)
    correction = Correction(
        step=(1 - waiting) * step / together,
        loader=loader,
        rest=rest,
        memory=1.0 if is_cpu(device) else peak / cost.peak_bytes,
        run=str(folder.absolute()),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Calibration(folder, device, precision, rows, correction)


def step_of_run(
    run: RunFolder, precision: Precision, channels: int, on_cpu: bool = False
) -> tuple[TrainConfig, StepCost]:
    """What decides the time of a run that is there, and what a step of one of its devices costs. Raises UserError."""
    from yoloyard.planning.trace import trace_step

    settings = {name: value for name, value in run.settings.items() if name not in ELSEWHERE}
    config = with_overrides(TrainConfig(), settings)
    classes, share = len(run.validation.get("classes", ())) or 80, max(1, config.batch // config.processes)
    how = precision, config.checkpoint_activations
    return config, trace_step(config, classes, share, *how, on_cpu=on_cpu, channels=channels)


def keep(calibration: Calibration) -> Path:
    """Keep the correction of its device and precision, in place of an older one. Returns the file. Raises UserError."""
    kept = _read()
    kept.setdefault(calibration.device.name, {})[calibration.precision] = dataclasses.asdict(calibration.correction)
    write_whole_text(path(), json.dumps(kept, indent=1) + "\n")
    return path()


def correction(device: Gpu, precision: Precision) -> Correction | None:
    """What is kept for this device and precision. Raises UserError if the file is damaged."""
    found = _read().get(device.name, {}).get(precision)
    if found is None:
        return None
    try:
        values = Correction(**{item.name: found[item.name] for item in dataclasses.fields(Correction)})
        ratios = (values.step, values.loader, values.rest, values.memory)
        if not all(math.isfinite(each) and each > 0 for each in ratios):
            raise ValueError("a ratio is not above 0")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from error
    return values


def path() -> Path:
    """The file of all corrections: in the user's folder of settings."""
    return config_folder() / FILE


def _read() -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads(path().read_text(encoding="utf-8"))
        return {name: dict(kinds) for name, kinds in kept.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path()}: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> UserError:
    why = f"{type(error).__name__}: {error}"
    return UserError(f"{path()} is damaged ({why}): remove it, then calibrate again by `yoloyard plan --calibrate RUN`")


def _facts(folder: Path, threads: int) -> tuple[Gpu, Precision, Images, int]:
    """Device, precision, data and usable cores of a run, by its environment.json. Raises UserError."""
    file = folder / "environment.json"
    try:
        facts = read_json(file.read_text(encoding="utf-8"))
        images = Images(**facts["samples"])
        precision: Precision = "float32" if facts["precision"].startswith("float32") else "amp"
        cores, name = int(facts["machine"]["cpus"]["usable"]), facts["accelerator"]
        if name is None and facts["device"] == "cpu":
            memory = float(facts["machine"]["memory"]["total"])
            return cpu_device(facts["machine"]["processor"], threads, memory), precision, images, cores
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there: it says on which device the run was; take another run") from error
    except KeyError as error:
        raise UserError(f"{file} lacks {error}: an older version wrote it; take a newer run") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): take another run") from error
    if name is None:
        raise UserError(f"{folder} ran on {facts['device']}, which plans don't know: take a run on a CPU or a CUDA GPU")
    return find_gpu(name), precision, images, cores
