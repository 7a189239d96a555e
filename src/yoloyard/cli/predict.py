"""The command `predict`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yoloyard.cli.flags import Json, given, print_json, stdout_for_json, takes_settings
from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.settings import PredictConfig


@takes_settings(PredictConfig, weights="model")
def predict(
    *sources: Annotated[str, Parameter(help="images, folders, globs, videos, a camera's number, an RTSP address")],
    source: Annotated[list[str] | None, Parameter(help="the same as naming it without the flag")] = None,
    json: Json = False,
    **flags: Any,
) -> None:
    """Find objects in images, videos and camera streams."""
    from yoloyard.commands.model import USED, Model
    from yoloyard.commands.predict import predict as run
    from yoloyard.commands.sources import find_sources
    from yoloyard.common.files import new_run_folder
    from yoloyard.common.pixel_spec import PixelSpec
    from yoloyard.config.overrides import with_overrides
    from yoloyard.evaluation.metrics.showing import Showing

    config = with_overrides(PredictConfig(), given(flags))
    if not config.weights:
        raise UsageError("say which weights file: --weights FILE")
    with stdout_for_json(json):
        settings = {name: getattr(config, name) for name in USED}
        model = Model(config.weights, config.device, **settings)
        found = find_sources([*sources, *(source or [])], PixelSpec.of(model.metadata).files)
        folder = new_run_folder(Path(config.project), config.name)
        shown = Showing(model.settings.conf, model.settings.iou)
        if model.tile:
            print(f"images are cut: {model.tile}")
        print(f"shown: {shown}")
        done = run(model, found, folder, config.save_txt, config.save_json)
    if json:
        print_json({"weights": config.weights, **asdict(done), "shown": asdict(shown), "folder": folder})
    else:
        print(f"{done.images} images; results in {folder}")
    if done.unreadable or done.unwritten:
        failed = f"{done.unreadable} could not be read in full, {done.unwritten} results could not be written"
        raise UserError(f"{failed}; they are named above")
