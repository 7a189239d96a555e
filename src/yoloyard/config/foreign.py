"""Settings files of ultralytics (args.yaml) and yolov5 (opt.yaml, hyp.yaml), translated for `--config`.

Settings that mean nothing for the training of a detector are passed over. Settings that yoloyard does not have are
accepted at values that change nothing, and named in an error otherwise. Their names and defaults:
https://docs.ultralytics.com/usage/cfg/, https://docs.ultralytics.com/yolov5/tutorials/hyperparameter_evolution/
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import normal_overrides, read_overrides, whole_number
from yoloyard.config.settings import OPTIMIZERS, TrainConfig

TEXTS = ("data", "model", "cfg", "weights", "optimizer", "device", "classes")  # in which 0123 is no number
RATES = ("lr0", "momentum", "warmup_bias_lr")  # that `optimizer: auto` chooses as well

# The same name and meaning in both projects and here.
SHARED = """
    data epochs patience imgsz workers optimizer device seed cos_lr single_cls rect save_period
    lr0 lrf momentum weight_decay warmup_epochs warmup_momentum warmup_bias_lr box cls
    hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr mosaic mixup
"""


@dataclass(frozen=True)
class Dialect:
    """How another project's settings are read."""

    project: str
    passed_over: str  # other tasks and commands, where results are written, how a run is shown
    shared: str  # the same name and meaning as ours
    converted: dict[str, tuple[str, Callable[[Any], Any]]]  # our name, and our value; None: left out, as in `shared`
    neutral: dict[str, tuple[Any, ...]]  # names that we don't have: the values that change nothing


def overrides_of(file: Path) -> dict[str, Any]:
    """The overrides of a training, by the names of `TrainConfig`, in a file of `--config`, ours or another project's.

    Raises UsageError for a file that can't be read or followed, and for an unknown name.
    """
    return normal_overrides(TrainConfig, translated_overrides(read_overrides(file), file))


def translated_overrides(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a file of another project as overrides of ours; those of our own files are returned unchanged.

    Raises UsageError that names every setting that can't be followed, with its value and what to do.
    """
    if {"task", "mode"} <= settings.keys():
        if settings["task"] != "detect":
            raise UsageError(f"{path} is of the task '{settings['task']}', and yoloyard trains detectors only")
        return _translated(settings, ULTRALYTICS, path)
    if "hyp" in settings or "iou_t" in settings:
        hyp = settings.get("hyp")
        if isinstance(hyp, str):
            raise UsageError(f"{path} names another file of settings, {hyp}: give that one, and flags for the rest")
        if hyp is not None and not isinstance(hyp, Mapping):
            raise UsageError(f"{path}: hyp must hold lines such as 'lr0: 0.01', not {hyp!r:.80}")
        return _translated({**settings, **(hyp or {})}, YOLOV5, path)
    return dict(settings)


def _translated(settings: Mapping[str, Any], dialect: Dialect, path: Path) -> dict[str, Any]:
    shared, passed_over = dialect.shared.split(), dialect.passed_over.split()
    neutral = {name: values for names, values in dialect.neutral.items() for name in names.split()}
    plain = {name: value if name in TEXTS else _plain(value) for name, value in settings.items()}
    ours: dict[str, Any] = {}
    complaints = []
    for name, value in plain.items():
        if name in passed_over:
            continue
        if complaint := _complaint(name, value):
            complaints.append(f"{name}: {_yaml(value)} ({complaint})")
        elif name in shared or name in dialect.converted:
            our_name, convert = dialect.converted.get(name, (name, lambda value: value))
            if (converted := convert(value)) is not None:
                ours[our_name] = converted
        elif name not in neutral:
            complaints.append(f"{name}: {_yaml(value)} (not known here)")
        elif value not in neutral[name]:
            complaints.append(f"{name}: {_yaml(value)} (without it: {_yaml(neutral[name][0])})")
    if plain.get("pretrained") is False and "model" in ours:  # a weights file that only names its network
        ours["model"] = PurePath(ours["model"]).stem
    if complaints:
        raise UsageError(
            f"{path} is from {dialect.project} and has what yoloyard has not: {'; '.join(complaints)}. "
            "Change or take out these lines to train without it"
        )
    # What counts for nothing there either, whatever the file states.
    unused: tuple[str, ...] = ("mosaic", "mixup") if plain.get("rect") else ()
    if dialect is ULTRALYTICS and str(ours.get("optimizer", "auto")).lower() == "auto":
        unused += RATES
    return {name: value for name, value in ours.items() if name not in unused}


def _plain(value: Any) -> Any:
    """The value of a text in quotes, if that is true, false, none or a number; whole numbers as such."""
    if isinstance(value, str) and (lower := value.strip().lower()) in ("true", "false", "none", "null"):
        return None if lower[0] == "n" else lower == "true"
    if isinstance(value, str | float):
        for kind in (whole_number, float):
            with contextlib.suppress(ValueError):
                return kind(str(value))
    return value


def _complaint(name: str, value: Any) -> str | None:
    """What is wrong with the value of a setting that we do have, if anything."""
    if name in ("batch", "batch_size") and isinstance(value, int | float) and value < 1:
        return "a size that is found automatically; say how many images"
    if name == "optimizer" and str(value).lower() not in map(str.lower, OPTIMIZERS):
        return f"there are {', '.join(OPTIMIZERS)}"
    if name == "device" and "-1" in re.findall(r"[^\s,'\"()\[\]]+", str(value)):
        return "an idle GPU that is found automatically; say which, such as 0"
    if name == "imgsz" and isinstance(value, list) and len(value) != 2:
        return "one number, or height and width"
    if name == "freeze" and isinstance(value, list) and len(value) > 1 and value != list(range(len(value))):
        return "the first N layers only"
    return None


def _model(value: Any) -> str:
    """`yolo11n.yaml` describes the network that has the name yolo11n here; a .pt file is a weights file."""
    path = PurePath(str(value or ""))
    return path.stem if path.suffix in (".yaml", ".yml") else str(value or "")


def _freeze(value: Any) -> int | str | None:
    return (len(value) if isinstance(value, list) else value) or None


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


ULTRALYTICS = Dialect(
    project="ultralytics",
    passed_over="""
        task mode val split save save_dir project name exist_ok resume plots verbose deterministic profile
        channels_last cls_remap overlap_mask mask_ratio retina_masks pose kobj rle angle dlog dgrad dlam auto_augment
        erasing crop_fraction copy_paste_mode dis workspace dnn half int8 quantize tracker save_json save_hybrid source
        vid_stride stream_buffer visualize augment agnostic_nms embed show save_frames save_txt save_conf save_crop
        show_labels show_conf show_boxes line_width format keras optimize dynamic simplify opset nms end2end
    """,
    shared=f"{SHARED} time batch close_mosaic amp conf iou max_det fraction dfl nbs",
    converted={
        "model": ("model", _model),
        "pretrained": ("weights", lambda value: value if isinstance(value, str) else None),
        "cache": ("cache", lambda value: value or None),
        "classes": ("classes", lambda value: None if value == "" else value),
        "freeze": ("freeze", _freeze),
        "multi_scale": ("multi_scale", bool),  # newer releases give the share
        "compile": ("compile", lambda value: bool(value) or None),  # or a mode, which we have one of
    },
    neutral={
        "dropout bgr cutmix copy_paste label_smoothing cls_pw": (0,),  # cls_pw is another thing than ours
        "augmentations distill_model cfg": (None,),
    },
)

YOLOV5 = Dialect(
    project="yolov5",
    passed_over="""
        hyp save_dir project name exist_ok resume nosave noplots noval bucket local_rank entity bbox_interval
        artifact_alias upload_dataset s3_upload_dir neptune_token neptune_project neptune_resume_id hf_model_id hf_token
        hf_private hf_dataset_id roboflow_token roboflow_upload iou_t ndjson_console ndjson_file
    """,
    shared=f"{SHARED} weights batch_size sync_bn label_smoothing cls_pw obj obj_pw anchor_t",
    converted={
        "cfg": ("model", _model),
        "noautoanchor": ("autoanchor", lambda value: not value),
        "cache": ("cache", lambda value: value or None),
        "freeze": ("freeze", lambda value: _freeze(value[0] if isinstance(value, list) and len(value) == 1 else value)),
        "multi_scale": ("multi_scale", bool),
    },
    neutral={"evolve": (None,), "image_weights quad": (False,), "fl_gamma copy_paste": (0,), "anchors": (None, 0)},
)
