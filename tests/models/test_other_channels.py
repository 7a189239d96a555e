"""Networks for images of any number of channels: how they start from weights for three, and custom models."""

from pathlib import Path

import pytest
import torch

from tiny_network import Tiny
from yoloyard.commands.info import describe
from yoloyard.common.errors import UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.models import registry
from yoloyard.models.blocks import Conv
from yoloyard.models.custom_model import read_custom
from yoloyard.models.detector import Detector
from yoloyard.models.weights import for_channels, transfer
from yoloyard.training.engine.compilation import shape_to_try
from yoloyard.training.setup.batch_size import noise

THREE = registry.build("yolo11n", 2).eval()
IMAGE = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def started(channels: int, from_: Detector = THREE) -> tuple[Detector, str]:
    """A network for so many channels with the weights of another one, and the line about them."""
    detector = registry.build("yolo11n", 2, channels)
    with torch.no_grad():
        line = str(transfer(detector, from_.state_dict()))
    return detector.eval(), line


@torch.no_grad()
def maps(detector: Detector, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([level.flatten() for level in detector(images)])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_an_image_alike_in_all_channels_gives_what_it_gave_in_three(channels: int) -> None:
    detector, line = started(channels)
    assert "; new: " not in line
    assert "; not used: " not in line
    share = f"each of {channels} channels has 1/{channels} of the sum over the 3 of the file"
    assert line.endswith(f"; the first layer: {share}")
    expected = maps(THREE, IMAGE.repeat(1, 3, 1, 1))
    torch.testing.assert_close(maps(detector, IMAGE.repeat(1, channels, 1, 1)), expected, rtol=1e-5, atol=1e-5)


def test_weights_for_as_many_channels_are_taken_as_they_are_and_others_converted() -> None:
    five, _ = started(5)
    with torch.no_grad():
        next(iter(five.parameters())).copy_(torch.rand(16, 5, 3, 3))
    again, line = started(5, five)
    assert "first layer" not in line
    assert torch.equal(next(iter(again.parameters())), next(iter(five.parameters())))
    back, line = started(3, five)
    assert "each of 3 channels has 1/3 of the sum over the 5" in line
    expected = maps(five, IMAGE.repeat(1, 5, 1, 1))
    torch.testing.assert_close(maps(back, IMAGE.repeat(1, 3, 1, 1)), expected, rtol=1e-5, atol=1e-5)


def test_the_rule_is_the_sum_for_one_channel_and_the_mean_times_three_over_n_for_others() -> None:
    weights = torch.rand(8, 3, 3, 3)
    assert torch.equal(for_channels(weights, 1), weights.sum(dim=1, keepdim=True))
    for channel in for_channels(weights, 7).unbind(1):
        torch.testing.assert_close(channel, weights.mean(dim=1) * 3 / 7)


class TwoBackbones(Tiny):
    """As YOLOv9's largest ones have in training."""

    def __init__(self, channels: int) -> None:
        super().__init__(2)
        self.stem, self.second, self.image_channels = Conv(channels, 8, 7, 4), Conv(channels, 4, 3), channels


def test_a_second_backbone_starts_from_converted_weights_too() -> None:
    three, one = TwoBackbones(3), TwoBackbones(1)
    with torch.no_grad():
        report = transfer(one, three.state_dict())
    assert (report.fresh, report.channels) == ((), (3, 1))
    torch.testing.assert_close(one.second.conv.weight, three.second.conv.weight.sum(dim=1, keepdim=True))


def test_what_is_tried_before_training_has_the_channels_of_the_network() -> None:
    config = TrainConfig(imgsz=64, batch=4)
    assert shape_to_try(config, 1, 32, 5) == (4, 5, 64, 64)
    assert noise(2, 64, 8, 3, 5).images.shape == (2, 5, 64, 64)


def test_a_custom_model_is_used_if_it_takes_the_channels_of_the_data(tmp_path: Path) -> None:
    source = Path(Tiny.__init__.__code__.co_filename).read_text()
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(
        UserError, match=r"mine.py: the images of the data have 5 channels: .* but got 5 channels"
    ) as raised:
        read_custom(f"{file}:Tiny").build(2, 5)
    assert "\n" not in str(raised.value)
    file.write_text(source.replace("Conv(3,", "Conv(5,"))
    assert read_custom(f"{file}:Tiny").build(2, 5).image_channels == 5


def test_a_custom_model_without_data_is_looked_at_with_the_channels_of_its_first_convolution(tmp_path: Path) -> None:
    file = tmp_path / "grey.py"
    file.write_text(
        "from yoloyard.models import registry\n\n\n"
        "def build(num_classes):\n    return registry.build('yolo11n', num_classes, channels=1)\n"
    )
    described = describe(f"{file}:build")
    grey = registry.build("yolo11n", 80, channels=1)
    assert described["parameters"] == sum(each.numel() for each in grey.parameters())
