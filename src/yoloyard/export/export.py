"""The way in: from what is asked for to files, in a run folder of their own."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UsageError
from yoloyard.common.files import RUN_MARK, new_run_folder
from yoloyard.common.image_size import of_metadata, say_rounded, shape_of
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.common.versions import versions
from yoloyard.config.overrides import unknown_name
from yoloyard.config.settings import ExportConfig, ModelConfig
from yoloyard.export import int8, onnx_file, openvino_file, programs, tensorrt, triton
from yoloyard.export.end_nodes import end_nodes
from yoloyard.export.job import Job
from yoloyard.export.parity import Parity, compare
from yoloyard.export.preprocess import colours_of, limits_of, write_client
from yoloyard.models.detector import Detector
from yoloyard.models.weights import load_model
from yoloyard.runtimes.metadata import OUTPUTS, FileFacts
from yoloyard.storage.fetch import local_weights, weights_name

log = logging.getLogger(__name__)


def _onnx(job: Job, symmetric: bool = False) -> Path:
    """The ONNX file in the precision that is asked for; `symmetric`: as TensorRT wants 8 bits."""
    return int8.write_onnx(job, symmetric) if job.config.int8 else onnx_file.write(job)


# In this order: what is made of the ONNX file comes after it.
TARGETS: dict[str, Callable[[Job], Path]] = {
    "onnx": _onnx,
    "openvino": openvino_file.write,
    "pt2": programs.write_pt2,
    "torchscript": programs.write_torchscript,
    "triton": lambda job: triton.write(job, _onnx(job)),
    "tensorrt": lambda job: tensorrt.write(job, _onnx(job, symmetric=True)),
}
OF_TORCH = ("pt2", "torchscript")  # without int8, and without suppression, which torch has no operator for


@dataclass(frozen=True)
class Exported:
    """What an export wrote, by target a file or a folder, and what the comparison with the weights says."""

    config: ExportConfig
    folder: Path
    files: Mapping[str, Path]
    parity: Parity

    def as_dict(self) -> dict[str, Any]:
        """The document of `yoloyard export --json` (docs/json.md)."""
        return {
            "weights": self.config.weights,
            "folder": self.folder,
            "files": dict(self.files),
            "failures": list(self.parity.failures),
            "report": self.parity.page,
        }


def export(config: ExportConfig) -> Exported:
    """Write the files that `config` asks for into a new run folder, and compare them with the weights.

    Raises UsageError for settings that don't fit each other or the network, UserError for a file that is no weights
    file, a network that can't be traced, a missing package and a full disk. What was written before stays; an empty
    folder doesn't.
    """
    targets = _targets(config)
    weights = local_weights(config.weights)
    detector, metadata = load_model(weights)
    metadata = _keep_path(config, targets, detector, metadata)
    facts = _facts(config, weights, detector, metadata)
    folder = new_run_folder(Path(config.project), config.name)
    job = Job(config, Path(weights_name(config.weights)), detector, metadata, facts, folder)
    try:
        return _exported(job, targets)
    except BaseException:
        if {each.name for each in folder.iterdir()} == {RUN_MARK}:  # the next one gets the name
            shutil.rmtree(folder)
        raise


def _exported(job: Job, targets: Sequence[str]) -> Exported:
    """Write all files and compare them."""
    config, facts, folder = job.config, job.facts, job.folder
    say_rounded(config.imgsz or job.imgsz, job.imgsz, max(facts.strides))
    _ = job.labelled  # data that don't fit are refused now, not after minutes of calibration
    files = {}
    for target in targets:
        files[target] = TARGETS[target](job)
        log.info(f"{target}: {files[target]}")
    if (symmetric := job.path(int8.SYMMETRIC, "int8")).exists():
        files["onnx for tensorrt"] = symmetric
    if config.outputs == "maps" and "onnx" in files:
        for output, nodes in end_nodes(files["onnx"]).items():
            log.info(f"{output} ends at {', '.join(f'{node} ({tensor})' for node, tensor in nodes)}")
    write_client(job, files)
    if config.outputs != "maps":
        log.info("comparing the files with the weights")
    return Exported(config, folder, files, compare(job, files))


def _targets(config: ExportConfig) -> list[str]:
    """The targets in their order, and ONNX where others are made of it.

    Raises UsageError for an unknown one, and for settings that don't fit each other.
    """
    if not config.weights:
        raise UsageError("say which weights file to export: yoloyard export WEIGHTS")
    named = {name.strip() for name in config.to.split(",")} - {""}
    for name in sorted(named - set(TARGETS)):
        raise UsageError(unknown_name(name, TARGETS, "target"))
    named |= {"onnx"} if "triton" in named or ("tensorrt" in named and not config.int8) else set()
    targets = [name for name in TARGETS if name in named]
    if not targets:
        raise UsageError(f"say what to export to: --to {','.join(TARGETS)}")
    if config.outputs not in OUTPUTS:
        raise UsageError(unknown_name(config.outputs, OUTPUTS, "value of --outputs:"))
    if config.imgsz and config.dynamic:
        raise UsageError("--imgsz fixes the size and --dynamic leaves it open: leave one out")
    if config.int8 and config.half:
        raise UsageError("--int8 and --half are two precisions: leave one out")
    if config.int8 and not config.data:
        raise UsageError("--int8 needs images to calibrate with: --data data.yaml")
    for name in ("keep_float", "calibration_images"):
        if getattr(config, name) != getattr(ExportConfig, name) and not config.int8:
            raise UsageError(f"--{name.replace('_', '-')} is for --int8")
    if config.outputs != "nms" and (config.conf, config.iou, config.max_det) != (None, None, None):
        raise UsageError("--conf, --iou and --max-det are for --outputs nms; in other files suppression comes later")
    if config.int8:
        _refuse_torch(targets, "--int8")
    return targets


def _refuse_torch(targets: Sequence[str], what: str) -> None:
    if refused := [name for name in targets if name in OF_TORCH]:
        others = ", ".join(name for name in TARGETS if name not in OF_TORCH)
        raise UsageError(f"{what} can't be had as {' or '.join(refused)}, but as {others}")


def _keep_path(
    config: ExportConfig, targets: Sequence[str], detector: Detector, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Leave `detector` the branches that are exported, and return the metadata that says which.

    Raises UsageError where there are none, and for settings and targets that these branches can't have.
    """
    kept = metadata.get("evaluation", {})
    path = config.suppression or kept.get("suppression")
    detector.keep_path(path == "on" if path else detector.head.needs_suppression)
    needed = detector.head.needs_suppression
    if needed and config.outputs == "nms":
        _refuse_torch(targets, "--outputs nms")
    if not needed and config.iou is not None:
        raise UsageError("--iou is for suppression, and there is none with --suppression off")
    return {**metadata, "evaluation": {**kept, "suppression": "on" if needed else "off"}}


def _facts(config: ExportConfig, weights: Path, detector: Detector, metadata: Mapping[str, Any]) -> FileFacts:
    needed = detector.head.needs_suppression
    given = ModelConfig(conf=config.conf, iou=config.iou, max_det=config.max_det)
    return FileFacts(
        outputs=config.outputs,
        names=metadata.get("names") or [str(number) for number in range(detector.num_classes)],
        strides=detector.strides,
        shape=None if config.dynamic else shape_of(detector.input_size(config.imgsz or of_metadata(metadata))),
        max_batch=None,
        precision="float32",
        weights_sha256=file_sha256(weights),
        yoloyard=versions()["yoloyard"],
        suppression=limits_of(given, metadata) if config.outputs == "nms" else None,
        needs_suppression=needed,
        colours=colours_of(PixelSpec.of(metadata)),
    )
