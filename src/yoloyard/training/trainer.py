"""A training run from its first batch to its report, to be read from top to bottom.

A batch is one forward of all processes; an update is made every few batches (see `optimizer.Schedule`). All processes
run this file alike; the first alone writes and talks (see `parallel.Team`). Epochs are counted from 0 here and from 1
in everything that the user sees.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard import cpu
from yoloyard.common.cores import Threads
from yoloyard.common.device import (
    free_bytes,
    images_at_once,
    precision_text,
    repeated_shapes,
)
from yoloyard.common.errors import UserError
from yoloyard.common.files import write_whole_text
from yoloyard.common.structures import Detections
from yoloyard.cpu.memory import give_memory_back, reuse_memory
from yoloyard.data.loading.loader import TrainLoader, ValLoader, make_train_loader, make_val_loader
from yoloyard.data.pixels.decode import decode_image
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.metrics.showing import shown
from yoloyard.evaluation.validate import predict_all
from yoloyard.losses import Criterion, build_criterion
from yoloyard.machines import environment
from yoloyard.models.detector import Detector
from yoloyard.models.weights import load_model
from yoloyard.training.distributed.parallel import Team, exchanging, parallelize
from yoloyard.training.engine.compilation import compile_network, shape_to_try, shapes_vary
from yoloyard.training.engine.ema import ExponentialMovingAverage
from yoloyard.training.engine.multi_scale import vary_size
from yoloyard.training.engine.optimizer import Schedule, build_optimizer
from yoloyard.training.engine.step import Outcome, Update, Verdict, forward_backward
from yoloyard.training.interrupt import Interrupted, InterruptRequest
from yoloyard.training.listeners.monitor import (
    AlertRaised,
    CheckpointWritten,
    EpochEnded,
    Monitor,
    as_record,
    memory_gigabytes,
)
from yoloyard.training.listeners.results import save_run_weights, validation_batch, write_run_report
from yoloyard.training.listeners.trackers import Trackers, open_trackers
from yoloyard.training.setup.setup import Setup
from yoloyard.training.setup.starting_point import set_training_mode
from yoloyard.training.state.checkpoint import (
    Progress,
    TrainingState,
    copy_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from yoloyard.training.state.randomness import random_state, seed_all
from yoloyard.training.stopwatch import Stopwatch

log = logging.getLogger(__name__)

BAD_STEPS = 3  # so many in a row stop the run
IMAGES_NAMED = 20  # of a bad step
UNREACHED_NAMED = 8  # parameters without a gradient
SETTLED = 1  # batch of the run, from 0, after which maps lie where later steps put them, too
BATCHES_TRACKED = 3  # the first ones, as images
PREDICTIONS_TRACKED = 3  # images of each validation


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
    team: Team
    network: nn.Module  # the model as the step calls it
    state: TrainingState
    schedule: Schedule
    criterion: Criterion
    gains: dict[str, float]  # of each part of the loss
    around_step: Callable[[], AbstractContextManager[None]]  # forward and backward
    train_loader: TrainLoader
    val_loader: ValLoader
    trackers: Trackers
    interrupt: InterruptRequest
    threads: Threads
    since: float = field(default_factory=time.perf_counter)  # up to which `Progress.seconds` counts

    @property
    def epochs(self) -> int:
        """How many epochs the run will have, as far as is known."""
        return self.state.progress.planned_epochs or self.setup.config.epochs

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that a resumed run begins with."""
        return self.setup.folder / "checkpoints" / "last"


def fit(setup: Setup, monitor: Monitor, team: Team, checkpoint: Mapping[str, Any] | None = None) -> Result:
    """Train as `setup` says, from the beginning or from the run's last checkpoint, whose facts are `checkpoint`.

    Raises Interrupted after Ctrl-C or SIGTERM, with everything saved, and UserError if the run can't go on.
    """
    with InterruptRequest(silent=not team.is_rank_0) as interrupt:
        run = begin(setup, monitor, team, interrupt)
        if checkpoint is not None:
            go_on(run, checkpoint)
        try:
            while run.state.progress.epoch < run.epochs and not is_exhausted(run):
                run.threads.choose(team.min, wait=True)
                speed = train_epoch(run)
                run.threads.begin_to_measure()
                fit_epochs_to_time(run, run.state.progress.epoch + 1)
                is_due = is_to_be_validated(run)
                metrics, predictions = validate(run, run.state.update.ema.model) if is_due else (None, {})
                end_epoch(run, metrics, predictions, speed)
            return finish(run)
        finally:
            run.trackers.close()
            run.threads.restore()


def begin(setup: Setup, monitor: Monitor, team: Team, interrupt: InterruptRequest) -> Run:
    """Put the parts of a run together."""
    config, device = setup.config, setup.device
    team.run_folder = setup.folder
    if team.rank:  # each process draws its own dropout; rank 0 goes on from what the weights were drawn by
        seed_all(config.seed + team.rank)
    threads = Threads(device.type)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # for what torch allocates unasked, such as pinned memory
    pin_memory = device.type == "cuda"
    reuse_memory(device)
    model = setup.detector.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.sync_bn and team.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    stride = max(model.strides)
    at_once = images_at_once(device, config.imgsz)
    if at_once is not None:
        at_once = team.min(at_once)
    with team.long_work():  # which `cache` makes a long one
        train_loader = make_train_loader(
            setup.train_index,
            config,
            team.rank,
            team.size,
            pin_memory,
            stride=stride,
            transform=setup.transform,
        )
        val_loader = make_val_loader(
            setup.val_index,
            config.imgsz,
            validation_batch(config),
            stride=stride,
            workers=config.workers,
            rank=team.rank,
            world_size=team.size,
            pin_memory=pin_memory,
            at_once=at_once,
        )
    criterion, gains = build_criterion(model.head, config, free_bytes(device))
    around_step = cpu.prepare_training(model, criterion, setup.precision, team.size)
    network = parallelize(model, device, may_leave_out=setup.custom_model is not None)
    if config.compile:
        share = shape_to_try(config, team.size, stride)
        set_training_mode(model)
        with team.long_work():
            network = compile_network(network, model, share, setup.precision, shapes_vary(config))
    schedule = Schedule(config.optimization, config.epochs, len(train_loader), config.batch)
    optimizer = build_optimizer(model, config.optimization, schedule.decay)
    average = ExponentialMovingAverage(model, config.optimization.ema_ramp)
    update = Update(model, optimizer, setup.precision.scaler(), average)
    state = TrainingState(update, Progress(), torch.zeros(len(gains) + 3, device=device))
    trackers = Trackers([], lambda message: None)
    with team.on_rank_0() as is_rank_0:
        if is_rank_0:
            data = {"train": setup.train_index.facts(), "val": setup.val_index.facts()}
            facts = environment.facts(device, setup.precision.name, data, setup.folder)
            write_whole_text(setup.folder / "environment.json", json.dumps(facts, indent=1))
            trackers = open_trackers(setup.folder, config, lambda message: monitor.tell(AlertRaised(message)))
    where = f"{device}" if team.size == 1 else f"{team.size} x {device.type}"
    log.info(
        f"training {setup.model_name} on {where} in {precision_text(setup.precision, device)}: "
        f"{len(setup.train_index)} images, {len(setup.val_index)} for validation, "
        f"{len(train_loader)} batches of {config.batch} an epoch; results in {setup.folder}"
    )
    loss, loaders = (criterion, gains, around_step), (train_loader, val_loader)
    return Run(setup, monitor, team, network, state, schedule, *loss, *loaders, trackers, interrupt, threads)


def go_on(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Restore the last checkpoint; say where it goes on and, if the run was extended, with which learning rate."""
    restore_checkpoint(run.last_checkpoint, checkpoint, run.state, run.team.rank)
    progress, config = run.state.progress, run.setup.config
    planned = int(checkpoint["config"]["epochs"])
    if planned != config.epochs or config.time != checkpoint["config"]["time"]:
        progress.planned_epochs = 0
    fit_epochs_to_time(run, progress.epoch)
    run.monitor.read_records(progress.epoch)
    log.info(f"going on in epoch {progress.epoch + 1} of {run.epochs}, after {progress.position} images of it")
    if planned != config.epochs:
        lr0 = config.optimization.lr0
        before = dataclasses.replace(run.schedule, epochs=planned).factor(max(progress.epoch - 1, 0)) * lr0
        now, last = (run.schedule.factor(epoch) * lr0 for epoch in (progress.epoch, config.epochs - 1))
        log.info(
            f"epochs {planned} became {config.epochs}: the learning rate goes from {before:.2g} to {now:.2g} and then "
            f"to {last:.2g} in the last epoch; mosaic stops {config.augment.close_mosaic} epochs before the end"
        )


def train_epoch(run: Run) -> dict[str, float]:
    """The batches of the current epoch that are still to come, from disk to weight update; returns the speed."""
    setup, state = run.setup, run.state
    progress, update, config = state.progress, state.update, setup.config
    set_training_mode(update.model)
    stopwatch = Stopwatch(setup.device)
    unchecked: tuple[Verdict, list[int]] | None = None  # an update that the device may still be busy with
    images: list[int] = []  # that the next update learns from
    batches = run.train_loader.epoch(progress.epoch, progress.position, run.epochs)
    run.team.reached(place_of(run))
    bar_of_epoch = run.monitor.bar(f"epoch {progress.epoch + 1}/{run.epochs}", len(run.train_loader))
    with repeated_shapes(not shapes_vary(config)), bar_of_epoch as bar:
        while not is_asked_to_stop(run) and (batch := stopwatch.wait_for(batches)) is not None:
            number = progress.epoch * len(run.train_loader) + progress.position // config.batch
            loaded = batch
            run.schedule.apply(update.optimizer, number)
            batch = vary_size(batch.to(setup.device), config, max(update.model.strides), progress.epoch, number)
            is_due = number - progress.last_update >= run.schedule.accumulate_at(number)
            with exchanging(run.network, is_due):
                losses = forward_backward(
                    run.network,
                    run.criterion,
                    batch,
                    run.gains,
                    setup.precision,
                    update.scaler,
                    config.batch,
                    run.around_step,
                )
            if number < BATCHES_TRACKED:
                run.trackers.training_batch(loaded, setup.names, number)
            progress.position += config.batch
            run.team.reached(place_of(run))
            images += batch.source_ids
            outcome = None
            update.watch(losses)
            if is_due:
                name_unreached(run)
                outcome = update()
                progress.last_update = number
            if number == SETTLED:
                give_memory_back(setup.device)  # what the first batches left between their maps
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


def name_unreached(run: Run) -> None:
    """Before the first update, name the parameters that no gradient has reached, which the user may not expect."""
    if names := run.state.update.without_gradient():
        shown = ", ".join(names[:UNREACHED_NAMED])
        more = f" and {len(names) - UNREACHED_NAMED} more" if len(names) > UNREACHED_NAMED else ""
        log.info(f"no gradient reaches these parameters; they stay as they are until one does: {shown}{more}")


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
    images = [image for others in run.team.gather(images) for image in others]
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


def is_asked_to_stop(run: Run) -> bool:
    """Did Ctrl-C or SIGTERM come, to whichever process? All hear of it at the same step."""
    run.interrupt.signal = run.team.max(run.interrupt.signal or 0) or None
    return run.interrupt.signal is not None


def stop_if_asked(run: Run) -> None:
    """After Ctrl-C: save everything and end, saying how to go on."""
    if not is_asked_to_stop(run):
        return
    save(run)
    raise Interrupted(
        f"stopped; everything is saved. Go on with: yoloyard train --resume {shlex.quote(str(run.setup.folder))}",
        run.interrupt.signal or 0,
    )


def place_of(run: Run) -> str:
    """Where training is, for messages."""
    progress = run.state.progress
    return f"epoch {progress.epoch + 1}, step {progress.position // run.setup.config.batch + 1}"


def count_time(run: Run) -> None:
    """Add the time since the last call to the run's."""
    now = time.perf_counter()
    run.state.progress.seconds += now - run.since
    run.since = now


def fit_epochs_to_time(run: Run, done: int) -> None:
    """With `--time`, fit the number of epochs to the hours, after `done` of them."""
    config, progress = run.setup.config, run.state.progress
    if config.time is not None:
        count_time(run)
        spent = run.team.broadcast(progress.seconds)
        fitting = int(config.time * 3600 * done / spent) if done else config.epochs
        progress.planned_epochs = max(done, min(fitting, config.epochs) if "epochs" in run.setup.given else fitting, 1)
    run.schedule = dataclasses.replace(run.schedule, epochs=run.epochs)


def is_to_be_validated(run: Run) -> bool:
    """Every `val_period` epochs, and after the last."""
    epoch = run.state.progress.epoch + 1
    return epoch % run.setup.config.val_period == 0 or epoch >= run.epochs


def validate(run: Run, detector: Detector) -> tuple[Metrics, dict[int, Detections]]:
    """The figures of `detector` on the validation set, and, in the first process, the detections of all."""
    setup, config, team = run.setup, run.setup.config, run.team
    team.reached(f"the validation of epoch {run.state.progress.epoch + 1}")
    run.state.update.even_out_statistics()
    done = 0
    with run.monitor.bar("validation", len(setup.val_index)) as bar:

        def goes_on(images: int) -> bool:
            nonlocal done
            done += images * team.size
            if bar.is_due():
                bar.show(done, "", memory_gigabytes(setup.device))
            return run.interrupt.signal is None

        with team.long_work():
            own = predict_all(detector, run.val_loader, config.evaluation, setup.device, setup.precision, goes_on)
    stop_if_asked(run)
    predictions: dict[int, Detections] = {}
    for part in team.gather(own):
        predictions |= part
    with team.on_rank_0() as is_rank_0:
        metrics = evaluate(setup.val_index, predictions, config.evaluation.max_det) if is_rank_0 else None
        if metrics:
            metrics = dataclasses.replace(metrics, showing=metrics.showing.within(config.evaluation))
    return team.broadcast(metrics), predictions


def end_epoch(run: Run, metrics: Metrics | None, predictions: dict[int, Detections], speed: dict[str, float]) -> None:
    """Write weights, records and checkpoints, and begin the next epoch."""
    setup, state, monitor = run.setup, run.state, run.monitor
    progress, config = state.progress, setup.config
    epoch, figures = progress.epoch + 1, metrics.figures() if metrics else {}
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
    ) | {"threads": run.threads.number}
    value = figures.get(config.best_by)
    is_best = value is not None and (progress.best is None or value > progress.best)
    if is_best:
        progress.best, progress.best_epoch = value, progress.epoch
    if progress.best == 0:
        progress.best_epoch = progress.epoch  # patience begins with the first thing found
    state.update.even_out_statistics()
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0:
            average = state.update.ema.model
            save_run_weights(setup.folder / "weights" / "last.safetensors", setup, average, epoch, metrics)
            if is_best:
                save_run_weights(setup.folder / "weights" / "best.safetensors", setup, average, epoch, metrics)
            monitor.record(record)
            monitor.epoch_line(record, run.epochs)
    progress.epoch, progress.position = epoch, 0
    state.sums.zero_()
    save(run)
    with run.team.on_rank_0():
        if epoch == 1:
            run.trackers.labels(setup.train_index)  # not before the first step, which needn't wait for it
        run.trackers.scalars(record)
        if run.trackers and metrics:
            for image_id in range(min(PREDICTIONS_TRACKED, len(predictions))):
                image = decode_image(setup.val_index.paths[image_id])
                seen = shown(predictions[image_id], metrics.showing)
                run.trackers.prediction(image_id, image, seen, setup.names, epoch)
        if run.team.is_rank_0 and config.save_period and epoch % config.save_period == 0:
            copy_checkpoint(run.last_checkpoint, run.last_checkpoint.with_name(f"epoch-{epoch:04d}"), config.keep)
    monitor.tell(EpochEnded(epoch, record))


def save(run: Run) -> None:
    """Write the last checkpoint."""
    setup = run.setup
    run.state.update.even_out_gradients()
    if run.state.update.drop_bad_gradients():
        run.monitor.tell(AlertRaised("accumulated gradients are not finite; they are dropped"))
    count_time(run)
    run.state.update.even_out_statistics()
    random_states = run.team.gather(random_state(setup.device))
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0:
            save_checkpoint(run.last_checkpoint, run.state, setup.facts(), random_states)
    run.monitor.tell(CheckpointWritten(run.last_checkpoint))


def is_exhausted(run: Run) -> bool:
    """Has there been no better figure for `patience` epochs?"""
    progress, config, patience = run.state.progress, run.setup.config, run.setup.config.patience
    is_validated = progress.epoch > 0 and progress.epoch % config.val_period == 0
    exhausted = patience > 0 and is_validated and progress.epoch - 1 - progress.best_epoch >= patience
    if exhausted:
        log.info(f"no better {config.best_by} for {patience} epochs (--patience): training ends here")
    return exhausted


def finish(run: Run) -> Result:
    """Evaluate the best weights once more, write the report, say where everything is."""
    setup, monitor, progress = run.setup, run.monitor, run.state.progress
    best, report = setup.folder / "weights" / "best.safetensors", setup.folder / "report.html"
    if progress.best is None:  # the run ended before its first validation
        average = run.state.update.ema.model
        found, _ = validate(run, average)
        with run.team.on_rank_0() as is_rank_0:
            if is_rank_0:
                save_run_weights(best, setup, average, progress.epoch, found)
    count_time(run)
    detector, metadata = load_model(best)
    detector.to(device=setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics, predictions = validate(run, detector)
    give_memory_back(setup.device)  # plots and the process's own end need 150 MB more, most of it code
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0:
            report.unlink(missing_ok=True)  # that of a run that was extended since; a run with a report is complete
            write_run_report(report, setup, metrics, predictions, monitor.records, metadata["epoch"], progress.seconds)
    figures = metrics.figures()
    monitor.table(
        f"{setup.folder.name}: best epoch {metadata['epoch']} of {progress.epoch}",
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
