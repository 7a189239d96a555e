"""What a run does when it diverges (`--on-divergence`): steps that are bad in a row, or a loss that rises and rises."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NoReturn

from yoloyard.common.errors import DivergedError, UserError
from yoloyard.training.begin import Run, obey_rollbacks
from yoloyard.training.distributed.run_files import files_here
from yoloyard.training.engine.engine import Verdict
from yoloyard.training.engine.measures import sample_norm
from yoloyard.training.listeners import events
from yoloyard.training.saving import end_if_exhausted, save, save_for_good
from yoloyard.training.state.checkpoint import gone_back, put_back, read

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 3  # so many in a row are a divergence
MAX_ROLLBACKS = 3  # then the run ends
MAX_IMAGES_NAMED = 20  # in a line
OFFENDING_RATIO = 30.0  # of a sample's gradient norm to the median of the samples looked at
MAX_LEFT_OUT_SHARE = 0.25  # of the images: if more seem to offend, it is not the images


class Divergence(Exception):  # noqa: N818  # the trainer answers it
    """The run diverges, with the reason; the images of the batches that follow it may be to blame."""


def judge(run: Run, verdict: Verdict | None) -> None:
    """Hear of a step whether it was good, whether to stop or save, and its figures. Raises Divergence, DivergedError.

    It is raised in all processes alike.
    """
    if verdict is None:
        return
    flags, progress, history = verdict.read(), run.progress, run.monitor.history
    run.is_stopping |= flags.stop
    run.is_saving |= flags.save
    if flags.stop:
        end_if_exhausted(run)
    if not run.engine.is_bad(flags):
        if verdict.images is not None:  # an update
            progress.bad_steps = 0
        alert = run.monitor.look_at_step(verdict.figures(), run.engine.schedule) if flags.losses_finite else None
        if alert is not None:
            since = history.last_good(run.engine.number)
            answer(run, f"{alert.message} ({alert.evidence})", [number for number in history.spikes if number >= since])
        return
    progress.bad_steps += 1
    images = [image for others in run.team.gather(verdict.images or ()) for image in others]
    message = f"epoch {progress.epoch + 1}: loss or gradient is not finite, the step is skipped"
    said = f"its images: {named(run, images)}"
    remedy = "look at the images of such steps, and at blocks and transforms of your own"
    if not run.monitor.tell(events.AlertRaised(message, "not-finite", said, remedy), verdict.number):
        log.info(f"{message}; {said}")
    if progress.bad_steps >= MAX_BAD_STEPS:
        progress.bad_steps = 0
        batches = MAX_BAD_STEPS * run.engine.schedule.accumulate_at(verdict.number)
        suspects = range(max(verdict.number + 1 - batches, 0), verdict.number + 1)
        reason = f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite"
        answer(run, reason, suspects)


def answer(run: Run, reason: str, suspects: Sequence[int]) -> None:
    """Do as `--on-divergence` says. Raises Divergence where the run goes back, DivergedError where it ends."""
    if run.setup.config.on_divergence == "rollback":
        raise Divergence(reason, suspects)
    if run.setup.config.on_divergence == "stop":
        end(run, reason)


def end(run: Run, reason: str) -> NoReturn:
    """Save the run of this moment, and end it. Raises DivergedError, also if it can't be saved."""
    try:
        save_for_good(run)
        saved = f"all is saved in {run.setup.folder}"
    except UserError as error:
        saved = f"this moment is not saved: {error}"
    amp = " or with --no-amp" if run.setup.config.amp else ""
    advice = f"look at the alerts above, then train again with a lower --lr0{amp}"
    raise DivergedError(f"{reason}; {saved}; {advice}")


def roll_back(run: Run, trouble: Divergence) -> None:
    """Go back to before the trouble, halve the learning rate, leave offending images out, and save that.

    After `MAX_ROLLBACKS` times raises DivergedError instead, with the last good state saved.
    """
    progress, team = run.progress, run.team
    reason, suspects = trouble.args
    run.count_time()
    before = dataclasses.replace(progress)
    with team.on_rank_0() as is_rank_0:
        if is_rank_0:
            run.writer.drain()
        last_good = run.monitor.history.last_good(run.engine.number)  # bad steps leave no trace in what is saved
        header = gone_back(run.setup.folder, last_good, run.start is None) if is_rank_0 else None
    header = team.broadcast(header)
    if header is None:
        content = run.start
    else:
        with files_here(team, header.folder) as folder:
            content = read(dataclasses.replace(header, folder=folder), run.engine, team.rank)
    if content is None:
        end(run, f"{reason}, in {before.place}, and no whole checkpoint is from before that")
    put_back(content, run.engine, progress)
    run.monitor.load_state_dict(content["monitor"])
    run.fit_epochs_to_time(progress.epoch)
    place = progress.place
    progress.rollbacks, progress.left_out = before.rollbacks, before.left_out
    progress.seconds, progress.bad_steps, run.is_saving = before.seconds, 0, False
    if before.best is not None and (progress.best is None or before.best > progress.best):
        progress.best, progress.best_epoch = before.best, before.best_epoch  # its weights are kept
    if before.rollbacks >= MAX_ROLLBACKS:
        obey_rollbacks(run)
        end(run, f"{reason}, for the {MAX_ROLLBACKS + 1}th time, in {before.place}; the run went back to {place}")
    offending = offending_images(run, suspects)
    if team.max(run.interrupt.signal or 0):  # the resumed run meets the trouble again, and has the time to look
        return
    progress.rollbacks += 1
    progress.left_out = sorted({*before.left_out, *offending})
    obey_rollbacks(run)
    rate = run.engine.schedule.rate_factor * run.setup.config.optimization.lr0
    done = f"went back to {place}, with the learning rate halved to {rate:.2g}"
    without = f"these images are left out from here on: {named(run, offending)}" if offending else "no image stands out"
    message = f"{reason}, in {before.place}; the run {done} (time {progress.rollbacks} of {MAX_ROLLBACKS})"
    remedy = "look at the images" if offending else "if it happens again, train again with a lower --lr0"
    run.listeners.tell(events.AlertRaised(message, "rolled-back", without, remedy))
    save(run)


def offending_images(run: Run, suspects: Sequence[int]) -> list[int]:
    """Images of the batches `suspects` whose samples, each by itself, have a gradient that is not finite or huge.

    Ends early where the run is asked to stop.
    """
    loader, batch = run.train_loader, run.setup.config.batch
    found: list[tuple[tuple[int, ...], float]] = []
    places = [divmod(number, len(loader)) for number in suspects]
    requests = [loader.requests(epoch, place * batch, run.epochs)[0] for epoch, place in places]
    detector = run.engine.whole_model()
    with run.team.watch.long_work():
        for request, position in [(each, position) for each in requests for position in each.positions]:
            if run.interrupt.is_asked():
                break
            sample = loader.dataset[dataclasses.replace(request, positions=range(position, position + 1))]
            if isinstance(sample, UserError):
                raise sample
            found.append((sample.source_ids, sample_norm(run.engine, detector, sample)))
    bad = offending(run.team.broadcast([each for share in run.team.gather(found) for each in share]))
    return bad if len(bad) <= MAX_LEFT_OUT_SHARE * len(run.setup.train_tiles) else []


def offending(found: Sequence[tuple[tuple[int, ...], float]]) -> list[int]:
    """The images of samples whose gradient is not finite, or, where all are, far longer than most.

    `found` has the images that each sample is made of, several with a mosaic, and its gradient's norm. Images that are
    in harmless samples too are let off.
    """
    finite = [norm for _, norm in found if math.isfinite(norm)]
    limit = OFFENDING_RATIO * median(finite) if len(finite) == len(found) > 0 else math.inf
    harmless = {image for images, norm in found if norm < limit for image in images}
    return sorted({image for images, _ in found for image in images} - harmless)


def named(run: Run, images: Sequence[int]) -> str:
    """The paths of images of the training set, the first ones of many."""
    paths: list[Path | str] = [run.setup.train_tiles.paths[image] for image in dict.fromkeys(images)]
    more = f" and {len(paths) - MAX_IMAGES_NAMED} more" if len(paths) > MAX_IMAGES_NAMED else ""
    return ", ".join(map(str, paths[:MAX_IMAGES_NAMED])) + more
