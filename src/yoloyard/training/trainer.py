"""A training run from its first batch to its report, to be read from top to bottom.

All processes run this file alike; rank 0 alone writes, and tells the listeners what happens. Epochs are counted from 0
here and from 1 in everything that the user sees.
"""

import logging
import weakref

from yoloyard.common.device import repeated_shapes
from yoloyard.common.errors import TooLittleMemoryError, UserError
from yoloyard.training.begin import Run, begin, go_on, keep_start
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.divergence import Divergence, judge, roll_back
from yoloyard.training.engine.compilation import shapes_vary
from yoloyard.training.engine.engine import Verdict
from yoloyard.training.finish import finish
from yoloyard.training.interrupt import InterruptRequest
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Listeners, Result
from yoloyard.training.listeners.results import as_record
from yoloyard.training.saving import end_epoch, save, save_for_good, stop_if_asked
from yoloyard.training.setup.setup import Setup
from yoloyard.training.setup.starting_point import set_training_mode
from yoloyard.training.state.checkpoint import Header
from yoloyard.training.stopwatch import Stopwatch, memory_gigabytes
from yoloyard.training.validation import validate

log = logging.getLogger(__name__)


def fit(setup: Setup, listeners: Listeners, team: Team, checkpoint: Header | None = None) -> Result:
    """Train as `setup` says, from the beginning or a checkpoint. Raises Interrupted with all saved, or UserError."""
    result, failure = None, None
    with InterruptRequest(silent=not team.is_rank_0) as interrupt:
        run = begin(setup, listeners, team, interrupt)
        progress = run.progress
        try:
            if checkpoint is not None:
                go_on(run, checkpoint)
            else:
                keep_start(run)
            with team.on_rank_0():
                listeners.tell(events.RunStarted(setup.folder, progress.epoch, setup, progress.seconds))
            if checkpoint is None:
                run.monitor.look_at_start(setup)
            while progress.epoch < run.epochs and not is_exhausted(run):
                run.threads.choose(team.min, wait=True)
                try:
                    speed = train_epoch(run)
                except Divergence as trouble:
                    roll_back(run, trouble)
                    continue
                run.threads.begin_to_measure()
                epoch = progress.epoch + 1
                run.fit_epochs_to_time(epoch)
                is_due = epoch % setup.config.val_period == 0 or epoch >= run.epochs
                end_epoch(run, validate(run, run.engine.averaged()) if is_due else None, speed)
            result = finish(run)
            return result
        except BaseException as error:
            failure = error
            if isinstance(error, TooLittleMemoryError):
                try:
                    save_for_good(run)
                except UserError as another:  # it must not hide the cause
                    log.warning(f"this moment is not saved: {another}")
            if isinstance(error, Exception):
                run.writer.drain()  # what was handed over to be saved
            else:  # a second Ctrl-C: only what is being written, as long as the run folder is locked
                run.writer.stop()
            raise
        finally:
            listeners.tell(events.RunFinished(result, progress.epoch, progress.seconds, failure))
            run.threads.restore()


def train_epoch(run: Run) -> dict[str, float]:
    """The batches of the current epoch that are still to come, from disk to weight update; returns the speed."""
    engine, progress, config, device = run.engine, run.progress, run.setup.config, run.setup.device
    set_training_mode(engine.model)
    stopwatch = Stopwatch(device)
    former: Verdict | None = None  # of a step that the device may still be busy with
    batches = engine.strategy.batches(run.train_loader.epoch(progress.epoch, progress.position, run.epochs))
    run.listeners.tell(events.EpochStarted(progress.epoch + 1, run.epochs, len(run.train_loader)))
    run.team.reached(run.place)

    def figures() -> dict[str, float]:
        groups = {"train": engine.means()[0], "speed": stopwatch.figures()}
        return as_record(progress.epoch + 1, groups | {"memory": {"gigabytes": memory_gigabytes(device)}})

    with repeated_shapes(not shapes_vary(config)):
        while not run.stops and (batch := stopwatch.wait_for(batches)) is not None:
            number = engine.number
            report = engine.step(batch)
            progress.position += config.batch
            run.team.reached(run.place)
            judge(run, former)  # the step before this one: the device has finished it
            former = report.send()
            run.writer.look()
            if run.is_saving:
                judge(run, former)  # what the monitor has seen is saved, too
                former = None
                save(run)
            stopwatch.count(config.batch)
            done = progress.position // config.batch
            images = weakref.ref(batch)
            run.listeners.tell(events.StepFinished(progress.epoch + 1, done, number, report.losses, images, figures))
    judge(run, former)
    stop_if_asked(run)
    return stopwatch.figures()


def is_exhausted(run: Run) -> bool:
    """Has there been no better figure for `patience` epochs?"""
    progress, config = run.progress, run.setup.config
    is_validated = progress.epoch > 0 and progress.epoch % config.val_period == 0
    exhausted = is_validated and 0 < config.patience < progress.epoch - progress.best_epoch
    if exhausted:
        log.info(f"no better {config.best_by} for {config.patience} epochs (--patience): training ends here")
    return exhausted
