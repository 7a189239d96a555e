"""The fused copy and the decoding of candidates say what the plain network says."""

import pytest
import torch

from suppression import suppress
from yoloyard.common.nms import suppress_found
from yoloyard.models import registry
from yoloyard.models.detector import Detector

FAMILIES = ["yolov5n", "yolov8n", "yolo11n", "yolo12n", "yolov13n"]


def trained_looking(name: str, num_classes: int) -> Detector:
    """A network with running statistics and scores as training makes them."""
    torch.manual_seed(0)
    detector = registry.build(name, num_classes=num_classes)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return detector.eval()


@pytest.mark.parametrize(("name", "sync_bn"), [*((name, False) for name in FAMILIES), ("yolo11n", True)])
def test_a_fused_copy_computes_the_same_and_leaves_the_network_alone(name: str, sync_bn: bool) -> None:
    detector = trained_looking(name, 3).train()
    if sync_bn:
        detector = torch.nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    fused = detector.fused()
    assert detector.training
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in fused.modules())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for plain, folded in zip(detector.eval()(images), fused(images), strict=True):
            torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["yolov5n", "yolo11n"])
@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("conf", [0.0, 0.001, 0.3])
def test_decoding_candidates_alone_gives_the_detections_of_decoding_all(
    name: str, multi_label: bool, conf: float
) -> None:
    detector = trained_looking(name, 3)
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, detector.head.outputs, side, side + 1, generator=generator) * 2 - 1 for side in (6, 3, 2)]
    maps[0][1], maps[1][1], maps[2][1] = -20.0, -20.0, -20.0  # an image without a candidate but at conf 0
    with torch.no_grad():
        boxes, scores = detector.decode(maps)
        expected = suppress(boxes, scores, conf, 0.6, 20, multi_label)
        found = suppress_found(3, *detector.decode_above(maps, conf, multi_label), 0.6, 20)
    assert conf == 0 or len(found[1][0]) == 0
    for image, other in zip(found, expected, strict=True):
        torch.testing.assert_close(image[0], other[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(image[1], other[1])
        assert torch.equal(image[2], other[2])
