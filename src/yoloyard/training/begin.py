"""The parts of a run, put together, and where a run goes on."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard import cpu
from yoloyard.common.cores import Threads
from yoloyard.common.device import free_bytes, images_at_once, precision_text
from yoloyard.common.errors import UserError
from yoloyard.data.loading.loader import Loader, TrainLoader, make_train_loader, make_val_loader
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.losses import build_criterion
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.distributed.run_files import files_here
from yoloyard.training.engine.checkpointing import checkpoint_activations
from yoloyard.training.engine.compilation import compile_network, shape_to_try, shapes_vary
from yoloyard.training.engine.engine import Engine
from yoloyard.training.interrupt import InterruptRequest
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Listeners
from yoloyard.training.listeners.results import validation_batch
from yoloyard.training.monitor.monitor import Monitor
from yoloyard.training.setup.setup import Setup
from yoloyard.training.setup.space import tell_space
from yoloyard.training.setup.starting_point import set_training_mode
from yoloyard.training.state.checkpoint import Header, Progress, Snapshot, restore, snapshot_of
from yoloyard.training.state.randomness import RandomNumbers, seed_all
from yoloyard.training.strategies import build_strategy
from yoloyard.training.writer import Writer

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run, as the functions of the trainer hand them on."""

    setup: Setup
    team: Team
    listeners: Listeners
    interrupt: InterruptRequest
    threads: Threads
    engine: Engine
    writer: Writer
    monitor: Monitor
    train_loader: TrainLoader
    val_loader: Loader
    # by path: averages, epoch and figures of weights files that the writer has not written yet; its own
    unwritten: dict[Path, tuple[Mapping[str, Tensor], int, Metrics | None]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    start: Snapshot | None = None  # of a new run that may roll back, until its first checkpoint
    is_stopping: bool = False  # a process was asked to stop, as all processes have heard
    is_saving: bool = False  # a process was asked to save, and all save before the next batch
    since: float = field(default_factory=time.perf_counter)  # up to which `Progress.seconds` counts

    @property
    def stops(self) -> bool:
        """Is training to stop before the next batch? Several processes must have heard it, so that all stop alike."""
        return self.is_stopping or (self.team.size == 1 and self.interrupt.is_asked())

    @property
    def epochs(self) -> int:
        """How many epochs the run will have, as far as is known."""
        return self.progress.planned_epochs or self.setup.config.epochs

    @property
    def place(self) -> str:
        """Where training is, for messages."""
        progress = self.progress
        return f"epoch {progress.epoch + 1}, step {progress.position // self.setup.config.batch + 1}"

    def count_time(self) -> None:
        """Add the time since the last call to the run's."""
        now = time.perf_counter()
        self.progress.seconds += now - self.since
        self.since = now

    def fit_epochs_to_time(self, done: int) -> None:
        """With `--time`, fit the number of epochs to the hours, after `done` of them."""
        config, progress = self.setup.config, self.progress
        if config.time is not None:
            self.count_time()
            spent = self.team.broadcast(progress.seconds)
            fitting = int(config.time * 3600 * done / spent) if done else config.epochs
            most = min(fitting, config.epochs) if "epochs" in self.setup.spec.given else fitting
            progress.planned_epochs = max(done, most, 1)
        self.engine.plan(self.epochs)


def begin(setup: Setup, listeners: Listeners, team: Team, interrupt: InterruptRequest) -> Run:
    """Put the parts of a run together."""
    config, device = setup.config, setup.device
    team.watch.run_folder = setup.folder
    if team.rank:  # each process draws its own dropout; rank 0 goes on from what the weights were drawn by
        seed_all(config.seed + team.rank)
    threads = Threads(device.type)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)  # for what torch allocates unasked, such as pinned memory
    if team.is_rank_0:
        tell_space(setup)
    model = setup.detector.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.sync_bn and team.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    at_once = images_at_once(device, config.imgsz)
    if at_once is not None:
        at_once = team.min(at_once)
    stride = max(model.strides)
    criterion, gains = build_criterion(model.head, config, free_bytes(device))
    around_step = cpu.prepare_training(model, criterion, setup.precision, team.size)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    strategy = build_strategy(config, model, team, setup.precision, setup.spec.model_digest is not None)
    rank, shares = strategy.share
    reading: dict[str, Any] = {"stride": stride, "pin_memory": device.type == "cuda"}
    make = partial(make_train_loader, setup.train_tiles, config, rank, shares, transform=setup.transform, **reading)
    if config.cache == "disk":
        train_loader = team.first_of_host_first(make)
    else:
        with team.watch.long_work():  # which `--cache ram` makes a long one
            train_loader = make()
    reading |= {"rank": team.rank, "world_size": team.size, "workers": config.workers, "at_once": at_once}
    val_loader = make_val_loader(setup.val_tiles, config.imgsz, validation_batch(config), **reading)
    if config.compile:
        set_training_mode(model)
        with team.watch.long_work():
            shape = shape_to_try(config, team.size, stride, model.image_channels)
            options: dict[str, Any] = {"dynamic": shapes_vary(config), "pieces": strategy.pieces}
            strategy.network = compile_network(strategy.network, model, shape, setup.precision, **options)
    parts = model, criterion, gains, setup.precision, config
    minutes = config.save_minutes if team.is_rank_0 else 0.0  # one clock decides for all
    asked = lambda: (interrupt.is_asked(), interrupt.takes_save(minutes))  # noqa: E731
    engine = Engine(*parts, len(train_loader), strategy, around_step, asked)
    where = f"{device}" if team.size == 1 else f"{team.size} x {device.type}"
    log.info(
        f"training {setup.spec.model_name} on {where} in {precision_text(setup.precision, device)}: "
        f"{len(setup.train_index)} images, {len(setup.val_index)} for validation, "
        f"{len(train_loader)} batches of {config.batch} an epoch; results in {setup.folder}"
    )

    def saved(error: UserError | None) -> None:  # knows no `Run`, whose workers would then outlive the run
        if error is None:
            listeners.tell(events.CheckpointWritten(setup.last_checkpoint))
        else:
            advice = "Training goes on, and the next save tries it again; make room, or make that folder writable"
            listeners.tell(events.AlertRaised(f"{error} {advice}"))

    parts_beside = Writer(saved), Monitor(listeners.tell, len(train_loader))
    return Run(setup, team, listeners, interrupt, threads, engine, *parts_beside, train_loader, val_loader)


def keep_start(run: Run) -> None:
    """Keep what a new run goes back to if it diverges before its first checkpoint."""
    if run.setup.config.on_divergence == "rollback":
        random_states = [RandomNumbers(run.setup.device).state_dict()]
        run.start = snapshot_of({}, run.engine, run.progress, random_states, run.monitor.state_dict())


def obey_rollbacks(run: Run) -> None:
    """Train with the learning rate and without the images that the run's rollbacks have left."""
    run.engine.slow_down(0.5**run.progress.rollbacks)
    run.train_loader.left_out = tuple(run.progress.left_out)


def go_on(run: Run, checkpoint: Header) -> None:
    """Restore the last checkpoint; say where it goes on and, if the run was extended, with which learning rate."""
    with files_here(run.team, checkpoint.folder) as folder:
        restore(dataclasses.replace(checkpoint, folder=folder), run.engine, run.progress, run.team.rank)
    run.monitor.load_state_dict(checkpoint.facts.get("monitor", {}))
    obey_rollbacks(run)
    progress, config, before = run.progress, run.setup.config, checkpoint.spec.config
    planned = before.epochs
    if planned != config.epochs or config.time != before.time:
        progress.planned_epochs = 0
    run.fit_epochs_to_time(progress.epoch)
    log.info(f"going on in epoch {progress.epoch + 1} of {run.epochs}, after {progress.position} images of it")
    if planned != config.epochs:
        schedule = run.engine.schedule
        lr0 = config.optimization.lr0 * schedule.rate_factor
        former = dataclasses.replace(schedule, epochs=planned).factor(max(progress.epoch - 1, 0)) * lr0
        now, last = (schedule.factor(epoch) * lr0 for epoch in (progress.epoch, config.epochs - 1))
        log.info(
            f"epochs {planned} became {config.epochs}: the learning rate goes from {former:.2g} to {now:.2g} and then "
            f"to {last:.2g} in the last epoch; mosaic stops {config.augment.close_mosaic} epochs before the end"
        )
