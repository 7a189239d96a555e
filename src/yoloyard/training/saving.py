"""What a run saves: weights and figures at the end of an epoch, checkpoints, and all that a stop must keep."""

import shlex
import weakref

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
    engine.even_out_statistics()
    with run.team.on_rank_0() as is_rank_0:
        for name in ["last", *["best"] * is_best] if is_rank_0 else []:
            path = setup.folder / "weights" / f"{name}.safetensors"
            save_run_weights(path, setup, engine.average.model, epoch, metrics)
        run.listeners.tell(events.EpochMeasured(run.epochs, record))
    progress.epoch, progress.position = epoch, 0
    engine.begin_epoch()
    save(run)
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0 and config.save_period and epoch % config.save_period == 0:
            copy_checkpoint(run.last_checkpoint, run.last_checkpoint.with_name(f"epoch-{epoch:04d}"), config.keep)
        found = weakref.ref(validation) if validation else lambda: None
        run.listeners.tell(events.EpochEnded(epoch, record, found))


def save(run: Run) -> None:
    """Write the last checkpoint."""
    if run.engine.settle():
        run.listeners.tell(events.AlertRaised("accumulated gradients are not finite; they are dropped"))
    run.count_time()
    random_states = run.team.gather(RandomNumbers(run.setup.device).state_dict())
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0:
            write(snapshot_of(run.setup.spec.to_json(), run.engine, run.progress, random_states), run.last_checkpoint)
            run.listeners.tell(events.CheckpointWritten(run.last_checkpoint))


def stop_if_asked(run: Run) -> None:
    """After Ctrl-C or SIGTERM, to whichever process: save everything and end, saying how to go on."""
    if number := run.team.max(run.interrupt.signal or 0):
        run.interrupt.signal = number
        save(run)
        folder = shlex.quote(str(run.setup.folder))
        raise Interrupted(f"stopped; everything is saved. Go on with: yoloyard train --resume {folder}", number)
