"""Settings files that runs of ultralytics and yolov5 leave, as they are and with what we don't have."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from yoloyard.common.errors import UsageError
from yoloyard.config.foreign import translated_overrides
from yoloyard.config.overrides import checked_overrides, with_overrides
from yoloyard.config.settings import TrainConfig

# The words that a run of ultralytics 8.4 writes, at their defaults but for the data.
ARGS = """
task: detect
mode: train
model: yolo12n.yaml
data: trees/data.yaml
epochs: 100
time: null
patience: 100
batch: 16
imgsz: 320
save: true
save_period: -1
cache: false
device: null
workers: 8
project: null
name: train
exist_ok: true
pretrained: true
cls_remap: true
optimizer: auto
verbose: false
seed: 0
deterministic: true
single_cls: false
rect: false
cos_lr: false
close_mosaic: 10
resume: false
amp: true
fraction: 1.0
profile: false
freeze: null
multi_scale: 0.0
compile: false
channels_last: null
overlap_mask: true
mask_ratio: 4
dropout: 0.0
val: true
split: val
save_json: false
conf: null
iou: 0.7
max_det: 300
quantize: null
dnn: false
plots: false
nms: null
source: null
vid_stride: 1
stream_buffer: false
visualize: false
augment: false
agnostic_nms: false
classes: null
retina_masks: false
embed: null
show: false
save_frames: false
save_txt: false
save_conf: false
save_crop: false
show_labels: true
show_conf: true
show_boxes: true
line_width: null
format: torchscript
optimize: false
dynamic: false
simplify: true
opset: null
workspace: null
lr0: 0.01
lrf: 0.01
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
distill_model: null
dis: 6.0
box: 7.5
cls: 0.5
cls_pw: 0.0
dfl: 1.5
pose: 12.0
kobj: 1.0
rle: 1.0
angle: 1.0
dlog: 1.0
dgrad: 0.5
dlam: 1.0
nbs: 64
hsv_h: 0.015
hsv_s: 0.7
hsv_v: 0.4
degrees: 0.0
translate: 0.1
scale: 0.5
shear: 0.0
perspective: 0.0
flipud: 0.0
fliplr: 0.5
bgr: 0.0
mosaic: 1.0
mixup: 0.0
cutmix: 0.0
copy_paste: 0.0
copy_paste_mode: flip
auto_augment: randaugment
erasing: 0.4
cfg: null
tracker: tracktrack.yaml
save_dir: runs/detect/train
"""

HYP = """
lr0: 0.01
lrf: 0.01
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
box: 0.05
cls: 0.5
cls_pw: 1.0
obj: 1.0
obj_pw: 1.0
iou_t: 0.2
anchor_t: 4.0
fl_gamma: 0.0
hsv_h: 0.015
hsv_s: 0.7
hsv_v: 0.4
degrees: 0.0
translate: 0.1
scale: 0.5
shear: 0.0
perspective: 0.0
flipud: 0.0
fliplr: 0.5
mosaic: 1.0
mixup: 0.0
copy_paste: 0.0
"""

OPT = """
weights: ''
cfg: yolov5/models/yolov5n.yaml
data: trees/data.yaml
epochs: 100
batch_size: 16
imgsz: 320
rect: false
resume: false
nosave: false
noval: false
noautoanchor: true
noplots: true
evolve: null
bucket: ''
cache: ram
image_weights: false
device: ''
multi_scale: false
single_cls: false
optimizer: SGD
sync_bn: false
workers: 8
project: runs/train
name: exp
exist_ok: false
quad: false
cos_lr: false
label_smoothing: 0.1
patience: 100
freeze: [10]
save_period: -1
seed: 0
local_rank: -1
entity: null
upload_dataset: false
bbox_interval: -1
artifact_alias: latest
save_dir: runs/train/exp
"""


def read(text: str, **changes: Any) -> dict[str, Any]:
    return translated_overrides(yaml.safe_load(text) | changes, Path("args.yaml"))


def test_the_settings_of_an_ultralytics_run_are_ours() -> None:
    words = read(ARGS)
    config = with_overrides(TrainConfig(), words)
    assert (config.model, config.data, config.imgsz) == ("yolo12n", "trees/data.yaml", 320)
    assert (config.device, config.save_period, config.cache, config.freeze) == ("auto", 0, None, None)
    assert config.evaluation.conf == 0.001
    # Where a run lies isn't how it trains: nothing is written into that run's folder.
    assert not {"project", "name", "exist_ok"} & words.keys()
    # There, too, `auto` chooses these, whatever the file says.
    assert not {"lr0", "momentum", "warmup_bias_lr"} & words.keys()


@pytest.mark.parametrize(
    ("given", "word", "ours"),
    [
        ({"optimizer": "SGD", "lr0": 0.02}, "lr0", 0.02),
        ({"device": "0,1"}, "device", "0,1"),
        ({"device": [0, 1]}, "device", "0,1"),
        ({"device": 0}, "device", "0"),
        ({"save_period": 5}, "save_period", 5),
        ({"cache": True}, "cache", "ram"),
        ({"cache": "ram"}, "cache", "ram"),
        ({"cache": "disk"}, "cache", "disk"),
        ({"freeze": 10}, "freeze", "10"),
        ({"freeze": [0, 1, 2]}, "freeze", "3"),
        ({"model": "best.pt"}, "model", "best.pt"),
        ({"model": "yolo11n.pt", "pretrained": False}, "model", "yolo11n"),
        ({"pretrained": "other.pt"}, "weights", "other.pt"),
        ({"conf": 0.01}, "conf", 0.01),
        ({"classes": [0, 2]}, "classes", "0,2"),
        ({"multi_scale": 0.5}, "multi_scale", True),
        ({"time": 2.5}, "time", 2.5),
        ({"fraction": 0.5}, "fraction", 0.5),
        ({"single_cls": True}, "single_cls", True),
        ({"compile": "max-autotune"}, "compile", True),
        ({"multi_scale": "False"}, "multi_scale", False),
        ({"cache": "RAM"}, "cache", "ram"),
        ({"cache": "True"}, "cache", "ram"),
        ({"save_period": "5"}, "save_period", 5),
        ({"batch": "4"}, "batch", 4),
        ({"batch": 4.0}, "batch", 4),
        ({"imgsz": "64"}, "imgsz", 64),
        ({"imgsz": 64.0}, "imgsz", 64),
        ({"imgsz": [640, 640]}, "imgsz", 640),
        ({"imgsz": [512, 2048]}, "imgsz", (512, 2048)),
        ({"model": "yolo11n.pt", "pretrained": "False"}, "model", "yolo11n"),
        ({"rect": "False"}, "mosaic", 1.0),
        ({"optimizer": "SGD", "lr0": "1e-3"}, "lr0", 0.001),
        ({"classes": "0123"}, "classes", "0123"),
    ],
)
def test_values_are_said_in_our_way(given: dict[str, Any], word: str, ours: Any) -> None:
    assert checked_overrides(TrainConfig, read(ARGS, **given))[word] == ours


def test_everything_that_we_do_not_have_is_named_at_once() -> None:
    changes = {
        "copy_paste": 0.3,
        "cutmix": 0.1,
        "batch": -1,
        "optimizer": "NAdam",
        "cls_pw": 0.5,
        "device": -1,
    }
    with pytest.raises(UsageError) as error:
        read(ARGS, **changes, freeze=[3, 4], sharpness=2)
    message = str(error.value)
    assert message.startswith("args.yaml is from ultralytics and has what yoloyard has not: ")
    assert message.endswith("Change or take out these lines to train without it")
    for part in (
        "copy_paste: 0.3 (without it: 0)",
        "cutmix: 0.1 (without it: 0)",
        "batch: -1 (a size that is found automatically; say how many images)",
        "optimizer: NAdam (there are auto, SGD, AdamW, MuSGD)",
        "cls_pw: 0.5 (without it: 0)",
        "device: -1 (an idle GPU that is found automatically; say which, such as 0)",
        "freeze: [3, 4] (the first N layers only)",
        "sharpness: 2 (not known here)",
    ):
        assert part in message


@pytest.mark.parametrize("text", [ARGS, OPT + HYP + "hyp: {}"])
def test_rect_is_without_mosaic_and_mixup_whatever_is_stated(text: str) -> None:
    assert {"mosaic", "mixup"} <= read(text).keys()
    assert not {"mosaic", "mixup"} & read(text, rect=True).keys()


@pytest.mark.parametrize("device", ["-1", [-1, -1], "0,-1"])
def test_a_device_that_is_found_automatically_is_named(device: object) -> None:
    with pytest.raises(UsageError, match="an idle GPU that is found automatically"):
        read(ARGS, device=device)


def test_no_save_period_says_nothing() -> None:
    assert "save_period" not in read(ARGS, save_period=None)


def test_a_run_for_another_task_is_refused() -> None:
    with pytest.raises(UsageError, match=r"args\.yaml is of the task 'segment'"):
        read(ARGS, task="segment")


def test_the_settings_of_a_yolov5_run_are_ours() -> None:
    hyp = read(HYP)
    assert with_overrides(TrainConfig(), hyp).loss.box == 0.05
    assert hyp["lr0"] == 0.01
    words = read(OPT, hyp=yaml.safe_load(HYP))
    config = with_overrides(TrainConfig(), words)
    assert (config.model, config.batch, config.freeze, config.cache) == ("yolov5n", 16, "10", "ram")
    assert (config.loss.autoanchor, config.loss.label_smoothing, config.loss.obj) == (False, 0.1, 1.0)
    assert config.device == "auto"
    with pytest.raises(UsageError, match=r"is from yolov5 and has .*quad: true \(without it: false\)"):
        read(OPT, hyp=yaml.safe_load(HYP), quad=True)


def test_a_file_of_our_own_is_left_alone() -> None:
    assert translated_overrides({"epochs": 3, "optimizer": "auto"}, Path("settings.yaml")) == {
        "epochs": 3,
        "optimizer": "auto",
    }


@pytest.mark.parametrize("changes", [{"cache": "val"}, {"save_period": "often"}, {"batch": "many"}, {"imgsz": "wide"}])
def test_a_value_that_is_none_of_theirs_is_left_to_our_own_check(changes: dict[str, Any]) -> None:
    assert read(ARGS, **changes) | changes == read(ARGS, **changes)


@pytest.mark.parametrize("hyp", [[1], 3, True])
def test_hyp_must_hold_settings(hyp: object) -> None:
    with pytest.raises(UsageError, match=r"args\.yaml: hyp must hold lines such as 'lr0: 0.01', not "):
        read(OPT, hyp=hyp)
