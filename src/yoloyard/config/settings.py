"""Every setting once, with its type, default, range and help: two typed trees, and one class for each other command.

YAML files, flags, Python arguments and docs/settings.md come from these classes. `TrainConfig` is nested, so that each
room is handed its own part. Users write flat names, since every leaf has a name of its own. `config/overrides.py`
checks what users write. Annotations are types here, not texts: evaluating them all would slow `yoloyard --help`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

NEWEST = "newest"  # what `--resume` without a folder means
AUTO = "auto"  # a number that is found when a run begins
ON_OFF = ("on", "off")  # with suppression, or by branches that find each object once
OPTIMIZERS = ("auto", "SGD", "AdamW", "MuSGD")
FREE = {"resumable": True, "decides": False}  # marks of settings that may be others at any time


@dataclass(frozen=True)
class Setting:
    """A leaf of the tree."""

    name: str
    part: str  # the field of the tree that holds its class; empty for a leaf of the tree itself
    type: Any
    default: Any
    help: str
    at_least: float | None
    at_most: float | None
    choices: tuple[str, ...] = ()  # the only values of a text
    joined: bool = False  # a text of parts joined by commas, which may be a list in YAML and Python
    is_path: bool = False  # `~` at its beginning is the home folder
    hidden: bool = False  # in no help and no table
    resumable: bool = False  # a resumed run may change it
    decides: bool = True  # the results; else two runs that differ in it are alike
    auto: bool = False  # may be AUTO among overrides; a configuration has the default until the number is found


def setting(default: Any, help: str, at_least: float | None = None, at_most: float | None = None, **kind: Any) -> Any:
    """A leaf of the tree, as a dataclass field; the arguments are those of `Setting`."""
    return field(default=default, metadata={"help": help, "at_least": at_least, "at_most": at_most, **kind})


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied."""

    mosaic: float = setting(1.0, "probability of joining four images into one", 0, 1)
    mixup: float = setting(0.0, "probability of blending two images", 0, 1)
    hsv_h: float = setting(0.015, "hue jitter, fraction of the colour circle", 0, 1)
    hsv_s: float = setting(0.7, "saturation jitter, fraction", 0, 1)
    hsv_v: float = setting(0.4, "brightness jitter, fraction", 0, 1)
    degrees: float = setting(0.0, "rotation, plus or minus degrees", 0, 180)
    translate: float = setting(0.1, "shift, plus or minus fraction of the image", 0, 1)
    scale: float = setting(0.5, "zoom, plus or minus fraction", 0, 0.99)
    shear: float = setting(0.0, "shear, plus or minus degrees", 0, 89)
    perspective: float = setting(0.0, "perspective, plus or minus, per pixel", 0, 0.01)
    flipud: float = setting(0.0, "probability of an upside-down flip", 0, 1)
    fliplr: float = setting(0.5, "probability of a left-right flip", 0, 1)
    close_mosaic: int = setting(10, "last epochs without mosaic, mixup and copy_paste", 0)
    # See docs/line.md.
    copy_paste: float = setting(0.0, "probability of pasting up to three defects of another image", 0, 1)
    light: float = setting(0.0, "uneven light and highlights, up to this fraction", 0, 1)
    belt_blur: float = setting(0.0, "blur along the belt, up to so many pixels of imgsz", 0, 100)
    belt_angle: float = setting(0.0, "direction of the belt in degrees, clockwise from the image's width", -360, 360)
    noise: float = setting(0.0, "noise of the sensor: standard deviation of white, up to this fraction of it", 0, 1)
    rotate90: str = setting("0", "degrees by which the part may be turned: 0, 180 or 90", choices=("0", "180", "90"))


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights are moved."""

    optimizer: str = setting("auto", f"{', '.join(OPTIMIZERS[1:])} or auto (chosen by the number of updates)")
    lr0: float = setting(0.01, "initial learning rate", 0)
    lrf: float = setting(0.01, "final learning rate as a fraction of lr0", 0, 1)
    momentum: float = setting(0.937, "momentum of SGD and MuSGD, or Adam's beta1", 0, 0.9999)
    weight_decay: float = setting(0.0005, "for a batch of nbs", 0)
    warmup_epochs: float = setting(3.0, "epochs of warm-up", 0)
    warmup_momentum: float = setting(0.8, "momentum at the start of warm-up", 0, 1)
    warmup_bias_lr: float = setting(0.1, "learning rate of biases at the start of warm-up", 0)
    cos_lr: bool = setting(False, "cosine schedule instead of a linear one")
    ema_ramp: float = setting(2000.0, "updates after which the average of the weights has a long memory", 1)
    nbs: int = setting(64, "nominal batch: images of one optimizer update", 1)


@dataclass(frozen=True)
class LossConfig:
    """Gains of the parts of the loss, and what is peculiar to YOLOv5's."""

    box: float = setting(7.5, "gain of the box loss", 0)
    cls: float = setting(0.5, "gain of the class loss", 0)
    dfl: float = setting(1.5, "gain of the loss of the sides: distribution focal loss, or L1 (YOLO26); not YOLOv5", 0)
    obj: float = setting(1.0, "gain of the objectness loss (YOLOv5)", 0)
    anchor_t: float = setting(4.0, "an anchor learns boxes up to so many times longer or shorter (YOLOv5)", 1)
    autoanchor: bool = setting(True, "make new anchors where the boxes don't fit them (YOLOv5)")
    label_smoothing: float = setting(0.0, "share of the class targets that is spread evenly (YOLOv5)", 0, 0.99)
    cls_pw: float = setting(1.0, "weight of positive class targets (YOLOv5)", 0)
    obj_pw: float = setting(1.0, "weight of positive objectness targets (YOLOv5)", 0)


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions are made for the figures."""

    conf: float = setting(0.001, "lowest score that counts", 0, 1)
    iou: float = setting(0.7, "overlap above which suppression drops a box", 0, 1)
    max_det: int = setting(300, "most detections of an image", 1)
    suppression: str = setting(
        "on",
        "on: of overlapping boxes the best stays; off: by the head that finds each object once (see --end2end)",
        choices=ON_OFF,
    )


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run."""

    data: str = setting("", "the data.yaml of your images and labels", is_path=True, decides=False)  # its content does
    strict: bool = setting(False, "stop if anything is wrong with the data, instead of leaving out what can't be used")
    check_duplicates: bool = setting(
        False, "look for images of val that are in train too, also where that takes more than a few seconds"
    )
    preset: str | None = setting(
        None, "inspection: augmentation for parts on a line (docs/line.md); your own flags win", choices=("inspection",)
    )
    model: str = setting("yolo11n", "a name (see yoloyard info), a weight file, or my_model.py:build", is_path=True)
    weights: str | None = setting(None, "weight file or its address to start from; what fits is taken", is_path=True)
    end2end: bool = setting(
        False,
        "also train branches that find each object once (YOLOv8, 11, 12, 13; YOLO26 has them)",
    )
    epochs: int = setting(100, "epochs", 1, resumable=True)
    batch: int = setting(16, "images of one step, or auto: as many as a GPU's memory holds, up to nbs", 1, auto=True)
    imgsz: int | tuple[int, int] = setting(
        640, "training size in pixels, or HEIGHTxWIDTH; rounded up to a multiple of the largest stride", 32
    )
    tile: int | tuple[int, int] | None = setting(
        None,
        "cut images into tiles of so many of their pixels, or HEIGHTxWIDTH; imgsz is the same unless you say another",
        0,
    )
    tile_overlap: float = setting(0.2, "overlap of neighbouring tiles, as a share of a tile", 0, 0.99)
    tile_visible: float = setting(0.5, "a box counts in a tile that holds at least this share of it", 0.01, 1)
    tile_positive: float | None = setting(
        None, "share of tiles with a box in each epoch; auto or left out: all tiles once", 0.01, 1, auto=True
    )
    device: str = setting(
        "auto", "auto, cpu, cuda, 0, mps, or several: 0,1", joined=True, resumable=True, decides=False
    )
    device_path: str = setting("auto", "for tests: with 'accelerator' a CPU runs the code that a GPU runs", hidden=True)
    processes: int = setting(
        1, "processes of each host that share a batch, on cpu or with a GPU each", 1, resumable=True
    )
    strategy: str = setting(
        "ddp", "how a step is shared: ddp, fsdp, placement or pipeline (see docs/distributed.md)", resumable=True
    )
    cpu_offload: bool = setting(
        False, "fsdp: weights and the optimizer's values lie in the host's memory between their uses", resumable=True
    )
    compress_gradients: bool = setting(
        False, "ddp: exchange gradients in bfloat16, which halves the bytes on the network", resumable=True
    )
    nodes: str = setting("1", "hosts of the run; 1:4 goes on with as many as are there", **FREE)
    rendezvous: str | None = setting(None, "HOST:PORT where the hosts of the run meet; the same on all of them", **FREE)
    hang_timeout: float = setting(
        300.0,
        "seconds that a process may keep the others waiting, after the first steps, before the run ends",
        1,
        resumable=True,
    )
    sync_bn: bool = setting(False, "batch normalisation over all processes' images (GPUs only)")
    workers: int = setting(8, "processes that load images (0: load in the training process)", 0, **FREE)
    amp: bool = setting(True, "mixed precision: bfloat16 where the hardware has it, else float16 with loss scaling")
    compile: bool = setting(
        False,
        "compile the network by torch.compile: faster steps after minutes of compiling; wants a C++ compiler",
        resumable=True,
    )
    checkpoint_activations: bool = setting(
        False,
        "keep fewer maps for the backward pass and compute them again there: less memory, longer steps",
        **FREE,
    )
    cache: str | None = setting(None, "ram or disk: keep all images decoded, in memory or in a file that is used again")
    transform: str | None = setting(None, "my_transform.py:NAME, a function or Albumentations pipeline", is_path=True)
    freeze: str | None = setting(None, "N: the first N blocks; or prefixes of parameter names, joined by commas")
    time: float | None = setting(
        None, "hours that the run may take; without --epochs it takes them all", 0, resumable=True
    )
    val_period: int = setting(1, "validate every so many epochs, and after the last", 1)
    patience: int = setting(100, "stop after so many epochs without a better figure (0: never)", 0, resumable=True)
    best_by: str = setting("map50_95", "figure that decides which weights are best")
    save_minutes: float = setting(
        10.0, "save inside an epoch, too, so many minutes after the last time (0: never)", 0, **FREE
    )
    save_period: int = setting(10, "keep a checkpoint every so many epochs (0: only the last)", 0, **FREE)
    keep: int = setting(3, "how many of the periodic checkpoints are kept", 1, **FREE)
    backup: str | None = setting(
        None,
        "copy checkpoints, weights and records to s3://bucket/prefix, gs://, az:// or file:///folder",
        **FREE,
    )
    backup_endpoint: str | None = setting(
        None, "https:// address of an S3-compatible service (default: AWS_ENDPOINT_URL)", **FREE
    )
    grace_seconds: float = setting(
        25.0, "after SIGTERM or Ctrl-C the copy of the last checkpoint may take so long", 0, **FREE
    )
    on_divergence: str = setting(
        "rollback",
        "if the loss or gradients are no longer finite, or the loss rises and rises: warn; stop; or rollback, which "
        "goes back to the last good checkpoint with half the learning rate, at most three times",
        resumable=True,
    )
    seed: int = setting(0, "the same seed gives the same run", 0, 10**15)
    classes: str | None = setting(None, "train on these classes alone: numbers or names joined by commas", joined=True)
    single_cls: bool = setting(False, "take all classes as one, 'object'")
    fraction: float = setting(1.0, "share of the training images to use, above 0; chosen by the seed", 0, 1)
    rect: bool = setting(False, "batches of similar shapes with little padding, without mosaic and mixup")
    multi_scale: bool = setting(False, "each batch in another size, 0.5 to 1.5 times imgsz")
    class_weights: str | None = setting(
        None, "weights of the class loss: balanced, or a number for each class, joined by commas", joined=True
    )
    repeat_factor: float = setting(
        0.0, "images with a class that is in a smaller share of the images than this come more often (0: off)", 0, 1
    )
    project: str = setting("runs", "folder of the run folders", is_path=True, decides=False)
    name: str | None = setting(None, "name of the run (default: the data file's)", decides=False)
    exist_ok: bool = setting(False, "write into an existing run folder", decides=False)
    tensorboard: bool = setting(True, "write TensorBoard files where the package is installed", **FREE)
    wandb: bool = setting(False, "show the run in Weights & Biases, under the account that its package knows", **FREE)
    notify: str | None = setting(
        None,
        "address that is told of alerts and of the end: a webhook of Slack, Feishu, DingTalk or WeCom, or a server "
        "that takes JSON; it is kept in no file",
        **FREE,
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimization: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class ModelConfig:
    """How a weights file is used. None stands for the value in the file."""

    weights: str = setting("", "a weights file or its address; required", is_path=True)
    imgsz: int | tuple[int, int] | None = setting(
        None, "image size in pixels, or HEIGHTxWIDTH; default: as in the weights file", 32
    )
    tile: int | tuple[int, int] | None = setting(
        None, "cut images into tiles of so many pixels, or HEIGHTxWIDTH, or off; default: as in the weights file", 0
    )
    tile_overlap: float | None = setting(None, "overlap of tiles, a share; default: as in the weights file", 0, 0.99)
    conf: float | None = setting(None, "lowest score; default: as in the weights file", 0, 1)
    iou: float | None = setting(
        None, "overlap above which suppression drops a box; default: as in the weights file", 0, 1
    )
    max_det: int | None = setting(None, "most detections of an image; default: as in the weights file", 1)
    suppression: str | None = setting(
        None,
        "on, or off: by branches that find each object once, of networks that have them; default: as in the file",
        choices=ON_OFF,
    )
    device: str = setting("auto", "auto, cpu, cuda, 0, mps")
    names: str | None = setting(
        None,
        "classes of an exported file that doesn't say them: names joined by commas, or a data.yaml",
        joined=True,
        is_path=True,
    )


@dataclass(frozen=True)
class ValConfig(ModelConfig):
    """Everything that decides `yoloyard val`."""

    data: str = setting("", "the data.yaml of your images and labels; required", is_path=True)
    split: str = setting("val", "val, test or train")
    batch: int | None = setting(None, "images that share a shape; default: as in the weights file", 1)
    amp: bool | None = setting(None, "mixed precision; default: as in the weights file")
    workers: int = setting(0, "processes that load images", 0)
    save_json: bool = setting(False, "write predictions.json in COCO's format")
    project: str = setting("runs", "folder of the run folders", is_path=True)
    name: str = setting("val", "name of the run folder")


@dataclass(frozen=True)
class PredictConfig(ModelConfig):
    """Everything that decides `yoloyard predict`."""

    save_txt: bool = setting(False, "write labels/NAME.txt: class, box, score")
    save_json: bool = setting(False, "write predictions.json")
    project: str = setting("runs", "folder of the run folders", is_path=True)
    name: str = setting("predict", "name of the run folder")


@dataclass(frozen=True)
class ExportConfig:
    """Everything that decides `yoloyard export`."""

    weights: str = setting("", "a weights file or its address; required", is_path=True)
    to: str = setting(
        "onnx", "onnx, openvino, pt2, torchscript, triton, tensorrt; several joined by commas", joined=True
    )
    outputs: str = setting("boxes", "boxes (decoded), nms (suppressed, too) or maps (raw, for the compilers of chips)")
    suppression: str | None = setting(
        None,
        "on or off: the branches that need suppression, or those that don't; default: as in the weights file",
        choices=ON_OFF,
    )
    imgsz: int | tuple[int, int] | None = setting(
        None, "image size in pixels, or HEIGHTxWIDTH; default: as in the weights file", 32
    )
    dynamic: bool = setting(False, "any height and width that are multiples of the stride (default: one size)")
    half: bool = setting(False, "float16 weights")
    int8: bool = setting(False, "8-bit weights and activations; needs --data")
    data: str | None = setting(
        None, "the data.yaml whose training images calibrate and whose val images judge", is_path=True
    )
    calibration_images: int = setting(300, "training images that int8 is calibrated with", 1)
    keep_float: str | None = setting(
        None, "parts of the network that int8 leaves in float: names joined by commas", joined=True
    )
    conf: float | None = setting(None, "lowest score of --outputs nms; default: as in the weights file", 0, 1)
    iou: float | None = setting(None, "overlap of --outputs nms; default: as in the weights file", 0, 1)
    max_det: int | None = setting(None, "most boxes an image of --outputs nms; default: as in the weights file", 1)
    project: str = setting("runs", "folder of the run folders", is_path=True)
    name: str = setting("export", "name of the run folder")


def settings_of(tree: type, part: str = "") -> dict[str, Setting]:
    """All leaves of a configuration class by their name. `part` is the name of the field that holds the class."""
    found: dict[str, Setting] = {}
    for item in dataclasses.fields(tree):
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            found |= settings_of(item.type, item.name)
        else:
            found[item.name] = Setting(item.name, part, item.type, item.default, **item.metadata)
    return found


def flat_settings(config: Any) -> dict[str, Any]:
    """The values of a configuration by their flat names, as they stand in a YAML file."""
    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        values |= flat_settings(value) if dataclasses.is_dataclass(value) else {name: value}
    return values
