"""The end of a run: the figures of its best weights, and its report."""

import torch

from yoloyard.cpu.memory import give_memory_back
from yoloyard.models.weights import load_model
from yoloyard.training.begin import Run
from yoloyard.training.distributed.run_files import files_here
from yoloyard.training.listeners.card import write_card
from yoloyard.training.listeners.events import Result
from yoloyard.training.listeners.results import save_run_weights, write_run_report
from yoloyard.training.validation import validate


def finish(run: Run) -> Result:
    """Evaluate the best weights once more, by both paths where the network has them, and write the report."""
    setup, progress = run.setup, run.progress
    best, report = setup.folder / "weights" / "best.safetensors", setup.folder / "report.html"
    if progress.best is None:  # the run ended before its first validation
        average = run.engine.averaged()
        metrics = validate(run, average).metrics
        with run.team.on_rank_0() as is_rank_0:
            if is_rank_0:
                save_run_weights(best, setup, average.state_dict(), progress.epoch, metrics)
    run.count_time()
    with run.team.on_rank_0():
        run.writer.finish()
    kept = [str(best.relative_to(setup.folder)), *setup.spec.kept_files]
    with files_here(run.team, setup.folder, kept) as folder:
        detector, metadata = load_model(folder / kept[0])
    detector.to(device=setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = validate(run, detector)
    other = validate(run, detector, beside=found.metrics).metrics if len(detector.head.paths) > 1 else None
    give_memory_back(setup.precision)  # plots and the process's own end need 150 MB more, most of it code
    result = Result(setup.folder, best, report, found.metrics, metadata["epoch"], other)
    with run.team.on_rank_0() as is_rank_0:
        if is_rank_0:
            write_card(best.with_suffix(".md"), setup, result.best_epoch, found.metrics, other)
            report.unlink(missing_ok=True)  # that of a run that was extended since; a run with a report is complete
            write_run_report(result, setup, found.detections, progress.seconds)
    return result
