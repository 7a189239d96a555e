"""The validation of a detector within a run."""

import dataclasses

from yoloyard.common.errors import TooLittleMemoryError
from yoloyard.common.structures import Detections
from yoloyard.evaluation.metrics.coco import evaluate
from yoloyard.evaluation.validate import predict_all
from yoloyard.models.detector import Detector
from yoloyard.runtimes.network import Network
from yoloyard.training.begin import Run
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Validation
from yoloyard.training.saving import end_if_exhausted, stop_if_asked


def validate(run: Run, detector: Detector) -> Validation:
    """The figures of `detector` on the validation set, and on rank 0 the detections of all its images."""
    setup, config, team = run.setup, run.setup.config, run.team
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
            network = Network(detector, setup.device, setup.precision)
            own = predict_all(network, run.val_loader, config.evaluation, goes_on)
        except TooLittleMemoryError as error:
            run.engine.exhausted = str(error)
    end_if_exhausted(run)
    stop_if_asked(run)
    detections = {image: found for part in team.gather(own) for image, found in part.items()}
    with team.on_rank_0() as is_rank_0:
        metrics = evaluate(setup.val_index, detections, config.evaluation.max_det) if is_rank_0 else None
        if metrics:
            metrics = dataclasses.replace(metrics, showing=metrics.showing.within(config.evaluation))
    return Validation(team.broadcast(metrics), detections)
