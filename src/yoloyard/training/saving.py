"""What a run saves: weights and figures at the end of an epoch, checkpoints, and all that a stop must keep."""

import shlex
import time
import weakref
from collections.abc import Sequence

from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.begin import Run
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Validation
from yoloyard.training.listeners.results import as_record, save_run_weights
from yoloyard.training.state.checkpoint import copy_checkpoint, snapshot_of, write
from yoloyard.training.state.randomness import RandomNumbers
from yoloyard.training.stopwatch import memory_gigabytes


def end_epoch(run: Run, validation: Validation | None, speed: dict[str, float]) -> None:
    """Write weights, records and checkpoints, and begin the next epoch."""
    setup, engine, progress, config = run.setup, run.engine, run.progress, run.setup.config
    epoch, metrics = progress.epoch + 1, validation.metrics if validation else None
    figures = metrics.figures() if metrics else {}
    losses, norm = engine.means()
    groups = {"train": losses, "val": figures, "lr": engine.rates(), "gradient": {"norm": norm}, "speed": speed}
    groups["memory"] = {"gigabytes": memory_gigabytes(setup.device)}
    record = as_record(epoch, groups) | {"threads": run.threads.number}
    value = figures.get(config.best_by)
    is_best = value is not None and (progress.best is None or value > progress.best)
    if is_best:
        progress.best, progress.best_epoch = value, progress.epoch
    if progress.best == 0:
        progress.best_epoch = progress.epoch  # patience begins with the first thing found
    run.listeners.tell(events.EpochMeasured(run.epochs, record))
    run.monitor.look_at_epoch(record, metrics, len(run.train_loader))
    progress.epoch, progress.position = epoch, 0
    engine.begin_epoch()

    save(run, ["last", *["best"] * is_best], metrics, config.save_period and epoch % config.save_period == 0)
    found = weakref.ref(validation) if validation else lambda: None
    with run.team.on_rank_0():
        run.listeners.tell(events.EpochEnded(epoch, record, found))


def save(run: Run, weights: Sequence[str] = (), metrics: Metrics | None = None, keeps_copy: bool | int = False) -> None:
    """Save the run of this moment as the last checkpoint. Waits only until it is copied to the host's memory.

    `weights` names the weights files to write as well. What can't be written of them is tried again at the next save.
    """
    setup, epoch = run.setup, run.progress.epoch
    if run.engine.settle():
        run.listeners.tell(events.AlertRaised("accumulated gradients are not finite; they are dropped"))
    run.count_time()
    run.is_saving, run.interrupt.saved_at = False, time.monotonic()
    random_states = run.team.gather(RandomNumbers(setup.device).state_dict())
    run.start = None
    if not run.team.is_rank_0:
        return
    monitor = run.monitor.state_dict()
    snapshot = snapshot_of(setup.spec.to_json(), run.engine, run.progress, random_states, monitor)

    def work() -> None:
        average = {name: value for name, value in snapshot["ema"].items() if name != "ema.updates"}
        for name in weights:
            run.unwritten[setup.folder / "weights" / f"{name}.safetensors"] = average, epoch, metrics
        for path in list(run.unwritten):
            save_run_weights(path, setup, *run.unwritten[path])
            del run.unwritten[path]
        write(snapshot, run.last_checkpoint)
        if keeps_copy:
            name = f"epoch-{epoch:04d}"
            copy_checkpoint(run.last_checkpoint, run.last_checkpoint.with_name(name), setup.config.keep)

    run.writer.put(work)


def save_for_good(run: Run) -> None:
    """Save the run of this moment and wait until it is on disk. Raises UserError if that is not possible."""
    save(run)
    with run.team.on_rank_0():
        run.writer.finish()


def stop_if_asked(run: Run) -> None:
    """After Ctrl-C or SIGTERM, to whichever process: save everything and end, saying how to go on."""
    if number := run.team.max(run.interrupt.signal or 0):
        run.interrupt.signal = number
        save_for_good(run)
        folder = shlex.quote(str(run.setup.folder))
        raise Interrupted(f"stopped; everything is saved. Go on with: yoloyard train --resume {folder}", number)
