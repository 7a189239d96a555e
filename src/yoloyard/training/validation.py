"""The validation of a detector within a run."""

import dataclasses

from yoloyard.common.errors import TooLittleMemoryError
from yoloyard.common.structures import Detections
from yoloyard.evaluation.metrics.coco import Metrics, evaluate
from yoloyard.evaluation.validate import other_path, predict_all
from yoloyard.models.detector import Detector
from yoloyard.runtimes.network import Network
from yoloyard.training.begin import Run
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Validation
from yoloyard.training.saving import end_if_exhausted, stop_if_asked


def validate(run: Run, detector: Detector, beside: Metrics | None = None) -> Validation:
    """The figures of `detector` on the validation set, and on rank 0 the detections of all its images.

    They are made by the path that the run's settings say; where there are those figures, `beside`, by the other one,
    at the confidence that they have chosen.
    """
    setup, config, team = run.setup, run.setup.config, run.team
    settings, showing = config.evaluation, None
    if beside is not None:
        settings = dataclasses.replace(settings, suppression=other_path(settings.suppression))
        showing = beside.showing.within(settings)
    team.reached(f"the validation of epoch {run.progress.epoch + 1}")
    done = 0

    def goes_on(images: int) -> bool:
        nonlocal done
        done += images * team.size
        run.listeners.tell(events.ImagesValidated(done, len(setup.val_index)))
        return not run.interrupt.is_asked()

    run.listeners.tell(events.ImagesValidated(0, len(setup.val_index)))
    own: dict[int, Detections] = {}
    with team.watch.long_work():
        try:
            network = Network(detector, setup.device, setup.precision, suppression=settings.suppression == "on")
            own = predict_all(network, run.val_loader, settings, goes_on, tiling=setup.val_tiles.tiling)
        except TooLittleMemoryError as error:
            run.engine.exhausted = str(error)
    end_if_exhausted(run)
    stop_if_asked(run)
    detections = {image: found for part in team.gather(own) for image, found in part.items()}
    with team.on_rank_0() as is_rank_0:
        measured = setup.val_index, detections, settings.max_det, showing, settings.suppression
        metrics = evaluate(*measured) if is_rank_0 else None
        if metrics:
            metrics = dataclasses.replace(metrics, showing=metrics.showing.within(settings))
    return Validation(team.broadcast(metrics), detections)
