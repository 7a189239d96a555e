"""A training run from its first batch to its report, to be read from top to bottom.

A batch is one forward of all processes; an update is made every few batches (see `optimizer.Schedule`).
Epochs are counted from 0 here and from 1 in everything that the user sees.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard import environment
from yoloyard.config import to_words
from yoloyard.data.decode import decode_image
from yoloyard.data.loader import TrainLoader, ValLoader, make_train_loader, make_val_loader
from yoloyard.errors import UserError
from yoloyard.evaluation.coco import Metrics, evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.files import write_whole_text
from yoloyard.models.detector import Detector
from yoloyard.models.weights import load_model
from yoloyard.structures import Batch, Detections
from yoloyard.training.checkpoint import Progress, TrainingState, copy_checkpoint, restore_checkpoint, save_checkpoint
from yoloyard.training.criterion import Criterion, choose_criterion
from yoloyard.training.ema import ExponentialMovingAverage
from yoloyard.training.interrupt import Interrupted, InterruptRequest
from yoloyard.training.monitor import AlertRaised, CheckpointWritten, EpochEnded, Monitor, as_record, memory_gigabytes
from yoloyard.training.optimizer import Schedule, build_optimizer
from yoloyard.training.parallel import rank, world_size
from yoloyard.training.results import save_run_weights, validation_batch, write_run_report
from yoloyard.training.setup import Setup, set_training_mode
from yoloyard.training.step import Outcome, Update, Verdict, forward_backward
from yoloyard.training.trackers import Trackers, open_trackers

BAD_STEPS = 3  # so many in a row stop the run
IMAGES_NAMED = 20  # of a bad step
BATCHES_TRACKED = 3  # the first ones, as pictures
PREDICTIONS_TRACKED = 3  # pictures of each validation


@dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    folder: Path
    weights: Path  # the best ones
    report: Path
    metrics: Metrics  # of the best weights
    best_epoch: int  # from 1


@dataclass
class Run:
    """The parts of a run, as the functions below hand them on."""

    setup: Setup
    monitor: Monitor
    state: TrainingState
    schedule: Schedule
    criterion: Criterion
    gains: dict[str, float]  # of each part of the loss
    train_loader: TrainLoader
    val_loader: ValLoader
    trackers: Trackers
    interrupt: InterruptRequest

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that a resumed run begins with."""
        return self.setup.folder / "checkpoints" / "last"


def fit(setup: Setup, monitor: Monitor, checkpoint: Mapping[str, Any] | None = None) -> Result:
    """Train as `setup` says, from the beginning or from the run's last checkpoint, whose facts are `checkpoint`.

    Raises Interrupted after Ctrl-C or SIGTERM, with everything saved, and UserError if the run can't go on.
    """
    with InterruptRequest() as interrupt:
        run = begin(setup, monitor, interrupt)
        if checkpoint is not None:
            go_on(run, checkpoint)
        try:
            while run.state.progress.epoch < setup.config.epochs and not is_exhausted(run):
                started = time.perf_counter()
                speed = train_epoch(run)
                metrics, predictions = validate(run, run.state.update.ema.model)
                run.state.progress.seconds += time.perf_counter() - started
                end_epoch(run, metrics, predictions, speed)
            return finish(run)
        finally:
            run.trackers.close()


def begin(setup: Setup, monitor: Monitor, interrupt: InterruptRequest) -> Run:
    """Put the parts of a run together."""
    config, device = setup.config, setup.device
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # for what torch allocates unasked, such as pinned memory
    pin_memory = device.type == "cuda"
    model = setup.detector.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_loader = make_train_loader(setup.train_index, config, rank(), world_size(), pin_memory, say=monitor.say)
    val_loader = make_val_loader(
        setup.val_index,
        config.imgsz,
        validation_batch(config.batch),
        stride=max(model.strides),
        workers=config.workers,
        pin_memory=pin_memory,
        say=monitor.say,
    )
    schedule = Schedule(config.optimization, config.epochs, len(train_loader), config.batch)
    optimizer = build_optimizer(model, config.optimization, schedule.decay)
    average = ExponentialMovingAverage(model, config.optimization.ema_ramp)
    update = Update(model, optimizer, setup.precision.scaler(), average)
    criterion, gains = choose_criterion(model, config)
    state = TrainingState(update, Progress(), torch.zeros(len(gains) + 3, device=device))
    facts = environment.facts(device, setup.precision.name)
    write_whole_text(setup.folder / "environment.json", json.dumps(facts, indent=1))
    trackers = open_trackers(setup.folder, config, lambda message: monitor.tell(AlertRaised(message)))
    trackers.labels(setup.train_index)
    monitor.say(
        f"training {setup.model_name} on {device} in {setup.precision.name}: {len(setup.train_index)} images, "
        f"{len(setup.val_index)} for validation, {len(train_loader)} batches of {config.batch} an epoch; "
        f"results in {setup.folder}"
    )
    return Run(setup, monitor, state, schedule, criterion, gains, train_loader, val_loader, trackers, interrupt)


def go_on(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Restore the last checkpoint; say where it goes on and, if the run was extended, with which learning rate."""
    restore_checkpoint(run.last_checkpoint, checkpoint, run.state)
    progress, config = run.state.progress, run.setup.config
    run.monitor.read_records(progress.epoch)
    run.monitor.say(
        f"going on in epoch {progress.epoch + 1} of {config.epochs}, after {progress.position} images of it"
    )
    planned = int(checkpoint["config"]["epochs"])
    if planned != config.epochs:
        lr0 = config.optimization.lr0
        before = dataclasses.replace(run.schedule, epochs=planned).factor(max(progress.epoch - 1, 0)) * lr0
        now, last = (run.schedule.factor(epoch) * lr0 for epoch in (progress.epoch, config.epochs - 1))
        run.monitor.say(
            f"epochs {planned} became {config.epochs}: the learning rate goes from {before:.2g} to {now:.2g} and then "
            f"to {last:.2g} in the last epoch; mosaic stops {config.augment.close_mosaic} epochs before the end"
        )


def train_epoch(run: Run) -> dict[str, float]:
    """The batches of the current epoch that are still to come, from disk to weight update; returns the speed."""
    setup, state = run.setup, run.state
    progress, update, config = state.progress, state.update, setup.config
    set_training_mode(update.model)
    stopwatch = Stopwatch()
    unchecked: tuple[Verdict, list[int]] | None = None  # an update that the device may still be busy with
    images: list[int] = []  # that the next update learns from
    batches = run.train_loader.epoch(progress.epoch, progress.position)
    with run.monitor.bar(f"epoch {progress.epoch + 1}/{config.epochs}", len(run.train_loader)) as bar:
        while run.interrupt.signal is None and (batch := stopwatch.wait_for(batches)) is not None:
            number = progress.epoch * len(run.train_loader) + progress.position // config.batch
            if number < BATCHES_TRACKED:
                run.trackers.training_batch(batch, setup.names, number)
            run.schedule.apply(update.optimizer, number)
            batch = batch.to(setup.device)
            losses = forward_backward(
                update.model, run.criterion, batch, run.gains, setup.precision, update.scaler, config.batch
            )
            progress.position += config.batch
            images += batch.source_ids
            outcome = None
            update.watch(losses)
            if number - progress.last_update >= run.schedule.accumulate_at(number):
                outcome = update()
                progress.last_update = number
            add_to_sums(state.sums, losses, outcome)

            check(run, unchecked)  # the update before this one: the device has finished it
            unchecked = None
            if outcome is not None:
                unchecked, images = (outcome.send(), images), []
            stopwatch.count(config.batch)
            if bar.is_due():
                losses_text = "  ".join(f"{name} {value:.3f}" for name, value in mean_losses(run).items())
                bar.show(
                    progress.position // config.batch, f"{losses_text}  {stopwatch}", memory_gigabytes(setup.device)
                )
    check(run, unchecked)
    stop_if_asked(run)
    return stopwatch.figures()


def add_to_sums(sums: Tensor, losses: Tensor, outcome: Outcome | None) -> None:
    """Add a batch to the epoch's sums, on the device; what is not finite is left out."""
    finite = torch.isfinite(losses).all()
    parts = len(losses)
    sums[:parts] += torch.where(finite, losses, 0)
    sums[parts] += finite
    if outcome is not None:
        good = outcome.found_inf == 0
        sums[parts + 1] += torch.where(good, outcome.gradient_norm, 0)
        sums[parts + 2] += good


def mean_losses(run: Run) -> dict[str, float]:
    """The epoch's mean of each part of the loss."""
    *parts, batches, _, _ = run.state.sums.tolist()
    return {name: value / max(batches, 1) for name, value in zip(run.gains, parts, strict=True)}


def check(run: Run, update: tuple[Verdict, list[int]] | None) -> None:
    """Hear whether an update was good. Three bad ones in a row end the run, with its state saved."""
    if update is None:
        return
    verdict, images = update
    progress = run.state.progress
    skipped, losses_finite = verdict.read()
    backed_off = run.state.update.scaler.is_enabled() and losses_finite  # a scaler that finds its scale
    if not skipped or backed_off:
        progress.bad_steps = 0
        return
    progress.bad_steps += 1
    names = [str(run.setup.train_index.paths[image]) for image in dict.fromkeys(images)]
    shown = ", ".join(names[:IMAGES_NAMED]) + (
        f" and {len(names) - IMAGES_NAMED} more" if len(names) > IMAGES_NAMED else ""
    )
    message = f"epoch {progress.epoch + 1}: loss or gradient is not finite, the step is skipped; its images: {shown}"
    run.monitor.tell(AlertRaised(message))
    if progress.bad_steps >= BAD_STEPS:
        progress.bad_steps = 0
        save(run)
        raise UserError(
            f"{BAD_STEPS} steps in a row had a loss or gradient that is not finite. The weights are as they were "
            f"before, and saved in {run.setup.folder}. Look at the images named above, then train again with a lower "
            "--lr0 or with --no-amp"
        )


def stop_if_asked(run: Run) -> None:
    """After Ctrl-C: save everything and end, saying how to go on."""
    if run.interrupt.signal is None:
        return
    save(run)
    raise Interrupted(
        f"stopped; everything is saved. Go on with: yoloyard train --resume {shlex.quote(str(run.setup.folder))}",
        run.interrupt.signal,
    )


def validate(run: Run, detector: Detector) -> tuple[Metrics, dict[int, Detections]]:
    """The figures of `detector` on the validation set."""
    setup, config = run.setup, run.setup.config
    done = 0
    with run.monitor.bar("validation", len(setup.val_index)) as bar:

        def after_batch(images: int) -> None:
            nonlocal done
            done += images
            stop_if_asked(run)
            if bar.is_due():
                bar.show(done, "", memory_gigabytes(setup.device))

        predictions = predict_all(
            detector, run.val_loader, config.evaluation, setup.device, setup.precision, after_batch
        )
    return evaluate(setup.val_index, predictions, config.evaluation.max_det), predictions


def end_epoch(run: Run, metrics: Metrics, predictions: dict[int, Detections], speed: dict[str, float]) -> None:
    """Write weights, records and checkpoints, and begin the next epoch."""
    setup, state, monitor = run.setup, run.state, run.monitor
    progress, config = state.progress, setup.config
    epoch, figures = progress.epoch + 1, metrics.figures()
    *_, norms, updates = state.sums.tolist()
    run.schedule.apply(state.update.optimizer, epoch * len(run.train_loader) - 1)  # as it was in the last batch
    record = as_record(
        epoch,
        {
            "train": mean_losses(run),
            "val": figures,
            "lr": {group["name"]: group["lr"] for group in state.update.optimizer.param_groups},
            "gradient": {"norm": norms / max(updates, 1)},
            "speed": speed,
            "memory": {"gigabytes": memory_gigabytes(setup.device)},
        },
    )
    average = state.update.ema.model
    weights = setup.folder / "weights"
    save_run_weights(weights / "last.safetensors", setup, average, epoch, metrics)
    value = figures[config.best_by]
    if progress.best is None or value > progress.best:
        progress.best, progress.best_epoch = value, progress.epoch
        save_run_weights(weights / "best.safetensors", setup, average, epoch, metrics)
    if progress.best == 0:
        progress.best_epoch = progress.epoch  # patience begins with the first thing found
    monitor.record(record)
    monitor.epoch_line(record, config.epochs)
    progress.epoch, progress.position = epoch, 0
    state.sums.zero_()
    save(run)
    run.trackers.scalars(record)
    if run.trackers:
        for image_id in range(min(PREDICTIONS_TRACKED, len(setup.val_index))):
            image = decode_image(setup.val_index.paths[image_id])
            run.trackers.prediction(image_id, image, predictions[image_id], setup.names, epoch)
    if config.save_period and epoch % config.save_period == 0:
        copy_checkpoint(run.last_checkpoint, run.last_checkpoint.with_name(f"epoch-{epoch:04d}"), config.keep)
    monitor.tell(EpochEnded(epoch, record))


def save(run: Run) -> None:
    """Write the last checkpoint."""
    setup = run.setup
    if run.state.update.drop_bad_gradients():
        run.monitor.tell(AlertRaised("accumulated gradients are not finite; they are dropped"))
    facts = {
        "config": to_words(setup.config),
        "given": setup.given,
        "images": setup.fingerprint(),
        "names": list(setup.names),
        "model_arguments": setup.model_arguments,
        "model_digest": setup.own_model.digest if setup.own_model else None,
        "licence": setup.licence,
    }
    save_checkpoint(run.last_checkpoint, run.state, facts)
    run.monitor.tell(CheckpointWritten(run.last_checkpoint))


def is_exhausted(run: Run) -> bool:
    """Has there been no better figure for `patience` epochs?"""
    progress, patience = run.state.progress, run.setup.config.patience
    exhausted = patience > 0 and progress.epoch - 1 - progress.best_epoch >= patience
    if exhausted:
        run.monitor.say(f"no better {run.setup.config.best_by} for {patience} epochs (--patience): training ends here")
    return exhausted


def finish(run: Run) -> Result:
    """Evaluate the best weights once more, write the report, say where everything is."""
    setup, monitor, progress = run.setup, run.monitor, run.state.progress
    best, report = setup.folder / "weights" / "best.safetensors", setup.folder / "report.html"
    report.unlink(missing_ok=True)  # that of a run that was extended since; a run with a report is complete
    detector, metadata = load_model(best)
    detector.to(device=setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics, predictions = validate(run, detector)
    write_run_report(report, setup, metrics, predictions, monitor.records, metadata["epoch"], progress.seconds)
    figures = metrics.figures()
    monitor.table(
        f"{setup.folder.name}: best epoch {metadata['epoch']} of {len(monitor.records)}",
        [
            ("mAP50-95", f"{figures['map50_95']:.4f}"),
            ("mAP50", f"{figures['map50']:.4f}"),
            ("precision, recall", f"{figures['precision']:.3f}, {figures['recall']:.3f}"),
            ("time", f"{progress.seconds / 60:.1f} minutes"),
            ("weights", str(best)),
            ("report", str(report)),
        ],
    )
    return Result(setup.folder, best, report, metrics, metadata["epoch"])


class Stopwatch:
    """How fast an epoch goes, and how much of the time is spent waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waiting = 0.0
        self._images = 0

    def wait_for(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, None after the last."""
        asked = time.perf_counter()
        batch = next(batches, None)
        self._waiting += time.perf_counter() - asked
        return batch

    def count(self, images: int) -> None:
        """So many images more have been trained on."""
        self._images += images

    def figures(self) -> dict[str, float]:
        """Images a second, the share of waiting, and the seconds."""
        seconds = time.perf_counter() - self._started
        return {
            "images_per_second": self._images / seconds,
            "waiting_fraction": self._waiting / seconds,
            "seconds": seconds,
        }

    def __str__(self) -> str:
        figures = self.figures()
        return f"{figures['images_per_second']:.1f} images/s  {figures['waiting_fraction']:.0%} waiting for data"
