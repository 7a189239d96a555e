"""A training run from its first batch to its report, to be read from top to bottom.

All processes run this file alike; rank 0 alone writes, and tells the listeners what happens. Epochs are counted from 0
here and from 1 in everything that the user sees.
"""

import dataclasses
import logging
import shlex

import torch

from yoloyard.common.device import repeated_shapes
from yoloyard.common.errors import UserError
from yoloyard.common.structures import Detections
from yoloyard.cpu.memory import give_memory_back
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.models.detector import Detector
from yoloyard.models.weights import load_model
from yoloyard.training.begin import Run, begin, go_on
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.compilation import shapes_vary
from yoloyard.training.engine.engine import Verdict
from yoloyard.training.interrupt import Interrupted, InterruptRequest
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Listeners, Result
from yoloyard.training.listeners.results import as_record, save_run_weights, write_run_report
from yoloyard.training.setup.setup import Setup
from yoloyard.training.setup.starting_point import set_training_mode
from yoloyard.training.state.checkpoint import Header, copy_checkpoint, snapshot_of, write
from yoloyard.training.state.randomness import random_state
from yoloyard.training.stopwatch import Stopwatch, memory_gigabytes

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 3  # so many in a row end the run
MAX_IMAGES_NAMED = 20  # of a bad step
SETTLED_BATCH = 1  # of the run, from 0: after it maps lie in memory where later steps put them, too


def fit(setup: Setup, listeners: Listeners, team: Team, checkpoint: Header | None = None) -> Result:
    """Train as `setup` says, from the beginning or a checkpoint. Raises Interrupted with all saved, or UserError."""
    result = None
    with InterruptRequest(silent=not team.is_rank_0) as interrupt:
        run = begin(setup, listeners, team, interrupt)
        progress = run.progress
        try:
            if checkpoint is not None:
                go_on(run, checkpoint)
            with team.on_rank_0():
                listeners.tell(events.RunStarted(setup.folder, progress.epoch, setup))
            while progress.epoch < run.epochs and not is_exhausted(run):
                run.threads.choose(team.min, wait=True)
                speed = train_epoch(run)
                run.threads.begin_to_measure()
                epoch = progress.epoch + 1
                run.fit_epochs_to_time(epoch)
                is_due = epoch % setup.config.val_period == 0 or epoch >= run.epochs
                metrics, detections = validate(run, run.engine.average.model) if is_due else (None, {})
                end_epoch(run, metrics, detections, speed)
            result = finish(run)
            return result
        finally:
            listeners.tell(events.RunFinished(result, progress.epoch, progress.seconds))
            run.threads.restore()


def train_epoch(run: Run) -> dict[str, float]:
    """The batches of the current epoch that are still to come, from disk to weight update; returns the speed."""
    engine, progress, config, device = run.engine, run.progress, run.setup.config, run.setup.device
    set_training_mode(engine.model)
    stopwatch = Stopwatch(device)
    former: Verdict | None = None  # of a step that the device may still be busy with
    batches = run.train_loader.epoch(progress.epoch, progress.position, run.epochs)
    run.listeners.tell(events.EpochStarted(progress.epoch + 1, run.epochs, len(run.train_loader)))
    run.team.reached(run.place)

    def figures() -> dict[str, float]:
        groups = {"train": engine.means()[0], "speed": stopwatch.figures()}
        return as_record(progress.epoch + 1, groups | {"memory": {"gigabytes": memory_gigabytes(device)}})

    with repeated_shapes(not shapes_vary(config)):
        while not run.is_stopping and (batch := stopwatch.wait_for(batches)) is not None:
            number = engine.number
            report = engine.step(batch)
            progress.position += config.batch
            run.team.reached(run.place)
            if number == SETTLED_BATCH:
                give_memory_back(device)  # what the first batches left between their maps
            judge(run, former)  # the step before this one: the device has finished it
            former = report.send()
            stopwatch.count(config.batch)
            done = progress.position // config.batch
            run.listeners.tell(events.StepFinished(progress.epoch + 1, done, number, report.losses, batch, figures))
    judge(run, former)
    stop_if_asked(run)
    return stopwatch.figures()


def judge(run: Run, verdict: Verdict | None) -> None:
    """Hear whether a step was good, and whether to stop. Three bad ones in a row end the run, with its state saved."""
    if verdict is None:
        return
    flags, progress = verdict.read(), run.progress
    run.is_stopping |= flags.stop
    if not run.engine.is_bad(flags):
        if verdict.images is not None:  # an update
            progress.bad_steps = 0
        return
    progress.bad_steps += 1
    images = [image for others in run.team.gather(verdict.images or ()) for image in others]
    names = [str(run.setup.train_index.paths[image]) for image in dict.fromkeys(images)]
    more = f" and {len(names) - MAX_IMAGES_NAMED} more" if len(names) > MAX_IMAGES_NAMED else ""
    shown = ", ".join(names[:MAX_IMAGES_NAMED]) + more
    message = f"epoch {progress.epoch + 1}: loss or gradient is not finite, the step is skipped; its images: {shown}"
    run.listeners.tell(events.AlertRaised(message))
    if progress.bad_steps >= MAX_BAD_STEPS:
        progress.bad_steps = 0
        save(run)
        raise UserError(
            f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite. The weights are as they were "
            f"before, and saved in {run.setup.folder}. Look at the images named above, then train again with a lower "
            "--lr0 or with --no-amp"
        )


def is_exhausted(run: Run) -> bool:
    """Has there been no better figure for `patience` epochs?"""
    progress, config = run.progress, run.setup.config
    is_validated = progress.epoch > 0 and progress.epoch % config.val_period == 0
    exhausted = is_validated and 0 < config.patience < progress.epoch - progress.best_epoch
    if exhausted:
        log.info(f"no better {config.best_by} for {config.patience} epochs (--patience): training ends here")
    return exhausted


def validate(run: Run, detector: Detector) -> tuple[Metrics, dict[int, Detections]]:
    """The figures of `detector` on the validation set, and on rank 0 the detections of all its images."""
    setup, config, team = run.setup, run.setup.config, run.team
    team.reached(f"the validation of epoch {run.progress.epoch + 1}")
    run.engine.even_out_statistics()
    done = 0

    def goes_on(images: int) -> bool:
        nonlocal done
        done += images * team.size
        run.listeners.tell(events.ImagesValidated(done, len(setup.val_index), memory_gigabytes(setup.device)))
        return not run.interrupt.is_asked()

    run.listeners.tell(events.ImagesValidated(0, len(setup.val_index), 0.0))
    with team.watch.long_work():
        own = predict_all(detector, run.val_loader, config.evaluation, setup.device, setup.precision, goes_on)
    stop_if_asked(run)
    detections = {image: found for part in team.gather(own) for image, found in part.items()}
    with team.on_rank_0() as is_rank_0:
        metrics = evaluate(setup.val_index, detections, config.evaluation.max_det) if is_rank_0 else None
        if metrics:
            metrics = dataclasses.replace(metrics, showing=metrics.showing.within(config.evaluation))
    return team.broadcast(metrics), detections


def end_epoch(run: Run, metrics: Metrics | None, detections: dict[int, Detections], speed: dict[str, float]) -> None:
    """Write weights, records and checkpoints, and begin the next epoch."""
    setup, engine, progress, config = run.setup, run.engine, run.progress, run.setup.config
    epoch, figures = progress.epoch + 1, metrics.figures() if metrics else {}
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
        run.listeners.tell(events.EpochEnded(epoch, record, metrics, detections))


def save(run: Run) -> None:
    """Write the last checkpoint."""
    if run.engine.settle():
        run.listeners.tell(events.AlertRaised("accumulated gradients are not finite; they are dropped"))
    run.count_time()
    random_states = run.team.gather(random_state(run.setup.device))
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


def finish(run: Run) -> Result:
    """Evaluate the best weights once more, and write the report."""
    setup, progress = run.setup, run.progress
    best, report = setup.folder / "weights" / "best.safetensors", setup.folder / "report.html"
    if progress.best is None:  # the run ended before its first validation
        average = run.engine.average.model
        found, _ = validate(run, average)
        with run.team.on_rank_0() as is_rank_0:
            if is_rank_0:
                save_run_weights(best, setup, average, progress.epoch, found)
    run.count_time()
    detector, metadata = load_model(best)
    detector.to(device=setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics, detections = validate(run, detector)
    give_memory_back(setup.device)  # plots and the process's own end need 150 MB more, most of it code
    result = Result(setup.folder, best, report, metrics, metadata["epoch"])
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0:
            report.unlink(missing_ok=True)  # that of a run that was extended since; a run with a report is complete
            write_run_report(result, setup, detections, progress.seconds)
    return result
