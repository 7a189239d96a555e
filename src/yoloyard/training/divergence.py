"""What a run does when it diverges (`--on-divergence`): steps that are bad in a row, or a loss that rises and rises."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from yoloyard.common.errors import DivergedError, UserError
from yoloyard.training.begin import Run, obey_rollbacks
from yoloyard.training.engine import measures
from yoloyard.training.engine.engine import Verdict
from yoloyard.training.listeners import events
from yoloyard.training.saving import end_if_exhausted, save, save_for_good
from yoloyard.training.state.checkpoint import newest_before, put_back, read

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 3  # so many in a row are a divergence
MAX_ROLLBACKS = 3  # then the run ends
MAX_IMAGES_NAMED = 20  # in a line
OFFENDING_RATIO = 30.0  # of a sample's gradient norm to the median of the samples looked at
MAX_LEFT_OUT_SHARE = 0.25  # of the images: if more seem to offend, it is not the images


class Divergence(Exception):  # noqa: N818  # the trainer answers it
    """The run diverges since batch `since`; the images of the batches `suspects` may be the reason."""

    def __init__(self, reason: str, since: int, suspects: Sequence[int]) -> None:
        super().__init__(reason)
        self.since, self.suspects = since, suspects


def judge(run: Run, verdict: Verdict | None) -> None:
    """Hear of a step whether it was good, whether to stop or save, and its figures. Raises Divergence, DivergedError.

    It is raised in all processes alike.
    """
    if verdict is None:
        return
    flags, progress, monitor = verdict.read(), run.progress, run.monitor
    run.is_stopping |= flags.stop
    run.is_saving |= flags.save
    if flags.stop:
        end_if_exhausted(run)
    if not run.engine.is_bad(flags):
        if verdict.images is not None:  # an update
            progress.bad_steps = 0
        if flags.losses_finite:
            alert = monitor.look_at_step(verdict.figures(), run.engine.schedule)
            if alert is not None:
                since = monitor.history.calm_until + 1
                answer(run, f"{alert.message} ({alert.evidence})", since, monitor.history.spikes)
        return
    progress.bad_steps += 1
    images = [image for others in run.team.gather(verdict.images or ()) for image in others]
    message = f"epoch {progress.epoch + 1}: loss or gradient is not finite, the step is skipped"
    said = f"its images: {named(run, images)}"
    remedy = "look at the images of such steps, and at blocks and transforms of your own"
    alert = events.AlertRaised(message, "not-finite", said, remedy)
    if not monitor.look_at_bad_step(alert, len(run.train_loader)):
        log.info(f"{message}; {said}")
    if progress.bad_steps >= MAX_BAD_STEPS:
        progress.bad_steps = 0
        batches = MAX_BAD_STEPS * run.engine.schedule.accumulate_at(verdict.number)
        first = max(verdict.number + 1 - batches, 0)
        reason = f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite"
        answer(run, reason, first, range(first, verdict.number + 1))


def answer(run: Run, reason: str, since: int, suspects: Sequence[int]) -> None:
    """Do as `--on-divergence` says. Raises Divergence where the run goes back, DivergedError where it ends."""
    if run.setup.config.on_divergence == "rollback":
        raise Divergence(reason, since, suspects)
    if run.setup.config.on_divergence == "stop":
        save_for_good(run)
        raise DivergedError(
            f"{reason}. All is saved in {run.setup.folder}. Look at the images named above, then train again with a "
            "lower --lr0 or with --no-amp"
        )


def roll_back(run: Run, trouble: Divergence) -> None:
    """Go back to before the trouble, halve the learning rate, leave offending images out, and save that.

    After `MAX_ROLLBACKS` times raises DivergedError instead, with the last good state saved.
    """
    progress, team = run.progress, run.team
    run.count_time()
    before = dataclasses.replace(progress)
    with team.on_rank_0() as is_rank_0:
        if is_rank_0:
            run.writer.drain()
        header = newest_before(run.setup.folder, trouble.since, run.start is None) if is_rank_0 else None
    header = team.broadcast(header)
    content: Any = run.start if header is None else read(header, run.engine, team.rank)
    assert content is not None  # `newest_before` gives none only where there is a start
    put_back(content, run.engine, progress)
    run.monitor.go_back(content.get("monitor", {}))
    place = progress.place
    progress.rollbacks, progress.seconds, progress.bad_steps = before.rollbacks, before.seconds, 0
    if progress.best is None or (before.best is not None and before.best > progress.best):
        progress.best, progress.best_epoch = before.best, before.best_epoch  # its weights are kept
    progress.left_out = list(before.left_out)
    run.is_saving = False
    if before.rollbacks >= MAX_ROLLBACKS:
        obey_rollbacks(run)
        save_for_good(run)
        raise DivergedError(
            f"{trouble}, for the {MAX_ROLLBACKS + 1}th time, in {before.place}. The weights of {place}, which are "
            f"good, are saved in {run.setup.folder}. Look at the alerts above, then train again with a lower --lr0 or "
            "with --no-amp"
        )
    offending = offending_images(run, trouble.suspects)
    progress.rollbacks += 1
    progress.left_out = sorted({*before.left_out, *offending})
    obey_rollbacks(run)
    rate = run.engine.schedule.rate_factor * run.setup.config.optimization.lr0
    done = f"went back to {place}, with the learning rate halved to {rate:.2g}"
    without = f"these images are left out from here on: {named(run, offending)}" if offending else "no image stands out"
    message = f"{trouble}, in {before.place}; the run {done} (time {progress.rollbacks} of {MAX_ROLLBACKS})"
    remedy = "look at the images" if offending else "if it happens again, train again with a lower --lr0"
    run.listeners.tell(events.AlertRaised(message, "rolled-back", without, remedy))
    save(run)


def offending_images(run: Run, suspects: Sequence[int]) -> list[int]:
    """Images of the batches `suspects` whose samples, each by itself, have a gradient that is not finite or huge.

    A sample is made of several images where there is a mosaic; those that are in harmless samples too are let off.
    """
    loader, engine, config = run.train_loader, run.engine, run.setup.config
    found: list[tuple[tuple[int, ...], float]] = []
    with run.team.watch.long_work():
        for number in suspects:
            epoch, batch = divmod(number, len(loader))
            request = loader.requests(epoch, batch * config.batch, run.epochs)[0]
            for position in request.positions:
                sample = loader.dataset[dataclasses.replace(request, positions=range(position, position + 1))]
                if isinstance(sample, UserError):
                    raise sample
                parts = engine.criterion, engine.gains, engine.precision
                found.append((sample.source_ids, measures.sample_norm(engine.model, *parts, sample.to(engine.device))))
    found = run.team.broadcast([each for share in run.team.gather(found) for each in share])
    finite = [norm for _, norm in found if np.isfinite(norm)]
    limit = OFFENDING_RATIO * median(finite) if finite else 0.0
    bad = {image for images, norm in found if not norm <= limit for image in images}
    bad -= {image for images, norm in found if norm <= limit for image in images}
    return sorted(bad) if len(bad) <= MAX_LEFT_OUT_SHARE * len(run.setup.train_index) else []


def named(run: Run, images: Sequence[int]) -> str:
    """The paths of images of the training set, the first ones of many."""
    paths: list[Path | str] = [run.setup.train_index.paths[image] for image in dict.fromkeys(images)]
    more = f" and {len(paths) - MAX_IMAGES_NAMED} more" if len(paths) > MAX_IMAGES_NAMED else ""
    return ", ".join(map(str, paths[:MAX_IMAGES_NAMED])) + more
