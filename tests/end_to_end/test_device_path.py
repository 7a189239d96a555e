"""A CPU trains with the code that a GPU runs: what a run does there differs in rounding alone."""

import pkgutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from commands import Command, start
from yoloyard.models.weights import load_model
from yoloyard.training import finish
from yoloyard.training.listeners.results import read_records
from yoloyard.training.state.checkpoint import read_header

NETWORK = """\
from torch import nn
from yoloyard.models.blocks import Conv
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead

class Small(Detector):
    def __init__(self, num_classes):
        super().__init__()
        self.p3, self.p4, self.p5 = Conv(3, 8, 9, stride=8), Conv(8, 8, 3, stride=2), Conv(8, 8, 3, stride=2)
        self.spare = nn.Conv2d(8, 8, 1)
        self.head = AnchorFreeHead((8, 8, 8), num_classes, (8, 16, 32), depthwise=True)

    def forward(self, images):
        p3 = self.p3(images)
        p4 = self.p4(p3)
        return self.head([p3, p4, self.p5(p4)])

def build(num_classes):
    return Small(num_classes)
"""

OWN_PATHS = (  # of a CPU
    "cpu.points_in_boxes.points_inside",
    "cpu.silu.batch_norm_silu",
    "cpu.silu.ConvolutionSiLU",
    "cpu.early_gradients",
    "cpu.memory.glibc",
)
OWN = ["--imgsz", 64, "--batch", 4, "--no-amp", "--no-tensorboard", "--device", "cpu"]


def test_a_run_with_the_code_of_a_gpu_has_the_losses_of_a_cpu(
    data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.py").write_text(NETWORK)
    monkeypatch.setattr(finish, "write_run_report", lambda *_: None)  # it takes longer than the training
    words = ["train", "--model", "small.py:build", "--data", data, *OWN, "--nbs", 8, "--epochs", 2]
    found = {}
    for name in ("as_on_a_cpu", "as_on_a_gpu"):
        path = ["--device-path", "accelerator"] if name == "as_on_a_gpu" else []
        paths = {name: Mock(wraps=pkgutil.resolve_name(f"yoloyard.{name}")) for name in OWN_PATHS}
        with monkeypatch.context() as patched:
            for own_path, noting in paths.items():
                patched.setattr(f"yoloyard.{own_path}", noting)
            code, out, err = yoloyard(*words, *path, "--name", name)
        assert all(noting.called != bool(path) for noting in paths.values())
        assert (code, err) == (0, "")
        assert out.replace("\n", " ").count("no gradient reaches these parameters") == 1
        assert "spare.weight" in out
        records = read_records(Path("runs", name))
        scaler = read_header(Path("runs", name, "checkpoints", "last")).facts["engine"]["scaler"]
        found[name] = records, scaler, load_model(Path("runs", name, "weights", "last.safetensors"))[0].state_dict()
    (cpu, no_scaler, weights), (gpu, scaler, others) = found.values()
    assert not no_scaler
    assert scaler["scale"] > 1
    for one, other in zip(cpu, gpu, strict=True):
        for figure in ("train/box", "train/cls", "train/dfl", "gradient/norm"):
            assert other[figure] == pytest.approx(one[figure], rel=1e-3), figure
    for weight, value in weights.items():
        torch.testing.assert_close(others[weight], value, rtol=1e-2, atol=1e-4)


def test_the_flag_is_for_tests_and_says_what_there_is(data: Path, yoloyard: Command) -> None:
    code, _, err = yoloyard("train", "--data", data, *OWN, "--device-path", "gpu")
    assert (code, err) == (2, "yoloyard: --device-path gpu: there are auto and accelerator\n")
    assert "--device " in yoloyard("train", "--help")[1]
    assert "device-path" not in yoloyard("train", "--help")[1]


@pytest.mark.slow
@pytest.mark.parametrize("has_spare", [True, False])
def test_two_processes_say_once_what_is_not_used_and_nothing_else(data: Path, has_spare: bool) -> None:
    network = NETWORK if has_spare else NETWORK.replace("        self.spare = nn.Conv2d(8, 8, 1)\n", "")
    Path("small.py").write_text(network)
    words = [*OWN, "--epochs", 1, "--processes", 2]
    run = start("train", "--model", "small.py:build", "--data", data, *words)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    assert out.count("no gradient reaches these parameters") == has_spare
    assert out.count("spare.weight, spare.bias") == has_spare
