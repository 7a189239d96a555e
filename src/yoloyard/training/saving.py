"""What a run saves: weights and figures at the end of an epoch, checkpoints, and all that a stop must keep."""

import shlex
import signal
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from yoloyard.common.errors import TooLittleMemoryError, UserError
from yoloyard.common.files import cannot_write
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.training.begin import Run
from yoloyard.training.interrupt import HOSTS_CHANGE, Interrupted
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Validation
from yoloyard.training.listeners.results import as_record, save_run_weights
from yoloyard.training.state.checkpoint import Snapshot, copy_checkpoint, snapshot_of, write
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
    run.monitor.look_at_epoch(record, metrics)
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
    if images := run.engine.agree_on_micro_batch():
        run.listeners.tell(
            events.AlertRaised(
                f"out of memory: from here on a step computes at most {images} images at a time and adds up their "
                "gradients; batch, learning rate and loss stay, and BatchNorm sees fewer images at once",
                kind="out-of-memory",
                evidence=f"{run.place}, {setup.config.batch // run.team.size} images at once were too many",
                remedy="a lower --batch or --imgsz, or --checkpoint-activations, may be faster",
            )
        )
    if run.interrupt.is_warned:
        run.interrupt.is_warned = False
        run.listeners.tell(events.HostEnding("SIGUSR1", goes_on=True))
    if run.engine.settle():
        run.listeners.tell(events.AlertRaised("accumulated gradients are not finite; they are dropped"))
    run.count_time()
    run.is_saving, run.interrupt.saved_at = False, time.monotonic()
    random_states = run.team.gather(RandomNumbers(setup.device).state_dict())
    if run.start is not None and run.team.broadcast(setup.last_checkpoint.exists()):
        run.start = None
    monitor = run.monitor.state_dict()
    with run.team.on_rank_0() as is_rank_0:
        snapshot = snapshot_of(setup.spec.to_json(), run.engine, run.progress, random_states, monitor, is_rank_0)
        if is_rank_0:
            due = {setup.folder / "weights" / f"{name}.safetensors": (epoch, metrics) for name in weights}
            good_until = run.monitor.history.last_good(run.engine.number)
            run.writer.put(partial(write_save, run, snapshot, due, epoch if keeps_copy else None, good_until))


def write_save(
    run: Run,
    snapshot: Snapshot,
    weights: Mapping[Path, tuple[int, Metrics | None]],
    copied_epoch: int | None,
    good_until: int,
) -> None:
    """Write weights files and the checkpoint of the same moment; called by the writer's thread. Raises UserError.

    Weights come first, so that no checkpoint claims best weights that are not on disk; if they can't be written, the
    checkpoint is.
    """
    setup = run.setup
    average = {name: value for name, value in snapshot["ema"].items() if name != "ema.updates"}
    run.unwritten |= {path: (average, *facts) for path, facts in weights.items()}
    failure = None
    try:
        setup.require_folder()
        for path in list(run.unwritten):
            try:
                save_run_weights(path, setup, *run.unwritten[path])
                del run.unwritten[path]
            except UserError as error:
                failure = error
        write(snapshot, setup.last_checkpoint, good_until)
        if copied_epoch is not None:
            copy = setup.last_checkpoint.with_name(f"epoch-{copied_epoch:04d}")
            copy_checkpoint(setup.last_checkpoint, copy, setup.config.keep)
    except OSError as error:
        raise cannot_write(Path(error.filename or setup.folder), error) from error
    if failure is not None:
        raise failure


def save_for_good(run: Run) -> None:
    """Save the run of this moment and wait until it is on disk. Raises UserError if that is not possible."""
    save(run)
    with run.team.on_rank_0():
        run.writer.finish()


def end_if_exhausted(run: Run) -> None:
    """Raise TooLittleMemoryError in all processes if the memory of one was too small even for a single image."""
    for message in filter(None, run.team.broadcast(run.team.gather(run.engine.exhausted))):
        raise TooLittleMemoryError(message)


def stop_if_asked(run: Run) -> None:
    """After Ctrl-C or SIGTERM, to whichever process: save everything and end, saying how to go on."""
    if number := run.team.max(run.interrupt.signal or 0):
        run.interrupt.signal = number
        if number == signal.SIGTERM:
            run.listeners.tell(events.HostEnding("SIGTERM", goes_on=False))
        save_for_good(run)
        folder = shlex.quote(str(run.setup.folder))
        go_on = f"stopped; everything is saved. Go on with: yoloyard train --resume {folder}"
        if number == HOSTS_CHANGE:
            go_on = "everything is saved; the run goes on with the hosts that are there now"
        raise Interrupted(go_on, number, run.interrupt.asked_at)
