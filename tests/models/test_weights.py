"""Weight files: what goes in comes out, damage is told, and what fits is taken for fine-tuning."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from yoloyard.common.errors import UserError
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.models.weights import load_model, read_weights, save_weights, transfer

METADATA: dict[str, Any] = {
    "model": "yolo11n",
    "model_arguments": {"num_classes": 3, "channels": 3, "class_width": 96},
    "names": ["scratch", "dent", "划痕"],
    "epoch": 7,
    "metrics": {"map50_95": 0.25},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    detector = registry.build("yolo11n", **METADATA["model_arguments"])
    save_weights(tmp_path / "best.safetensors", detector.state_dict(), METADATA)
    return tmp_path / "best.safetensors"


def test_a_saved_model_comes_back_as_it_was(tmp_path: Path) -> None:
    detector = registry.build("yolo11n", **METADATA["model_arguments"])
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(2, 3, 64, 64)
    detector(images)  # moves the running statistics
    save_weights(tmp_path / "new" / "best.safetensors", detector.state_dict(), METADATA)
    random_state = torch.get_rng_state()
    loaded, metadata = load_model(tmp_path / "new" / "best.safetensors")
    assert torch.equal(torch.get_rng_state(), random_state)  # loading takes no random numbers
    assert metadata == METADATA
    assert not loaded.training
    assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == {"head.projection"}
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state_dict().items())
    loaded.train()(images)[0].mean().backward()  # what was loaded can be trained


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3)
    save_weights(tmp_path / "w", {"a": tensor, "b": tensor, "c": tensor.t()}, {})
    state, _ = read_weights(tmp_path / "w")
    assert torch.equal(state["a"], tensor)
    assert torch.equal(state["b"], tensor)
    assert torch.equal(state["c"], tensor.t())


def test_a_full_disk_leaves_the_old_file_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as half_written:
            half_written.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_weights(file, {"a": torch.zeros(3)}, {})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("kept", [0.0, 0.00001, 0.001, 0.5, 0.99999])
def test_a_cut_file_is_named(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"best\.safetensors is not a whole weight file"):
        load_model(file)


def test_other_files_are_told_apart(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the weights .*none\.safetensors: No such file"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="cannot read the weights"):
        load_model(tmp_path)
    (tmp_path / "text").write_text("weights: yolo11n\n" * 100)
    with pytest.raises(UserError, match="is no safetensors file"):
        load_model(tmp_path / "text")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign", {"format": "pt"})
    with pytest.raises(UserError, match="wasn't written by yoloyard"):
        load_model(tmp_path / "foreign")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "bare")
    with pytest.raises(UserError, match="doesn't say of which model"):
        load_model(tmp_path / "bare")


def test_metadata_that_does_not_fit_the_tensors_is_told(file: Path) -> None:
    state, metadata = read_weights(file)
    for changed, message in (
        ({"model": "yolo99n"}, "names a model that this version can't build: unknown model 'yolo99n'"),
        ({"model_arguments": {"num_classes": 3, "depth": 1}}, "names a model that this version can't build"),
        ({"model": 7}, "doesn't say of which model"),
        ({"model": "yolo11s"}, r"doesn't fit the model yolo11s that it names: backbone.stage4 \(45\), .* more\."),
    ):
        save_weights(file, state, metadata | changed)
        with pytest.raises(UserError, match=message):
            load_model(file)


def test_fine_tuning_with_another_class_count_takes_all_but_the_class_branches() -> None:
    source = registry.build("yolo11n", num_classes=80).state_dict()
    detector = registry.build("yolo11n", num_classes=3)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    report = transfer(detector, source)
    for name, tensor in detector.state_dict().items():
        expected = source[name] if name in report.taken else before[name]
        assert torch.equal(tensor, expected), name
    assert {name.rsplit(".", 5)[0].split(".")[0] for name in report.fresh} == {"head"}
    assert all(name.startswith("head.class_branches.") for name in report.fresh)
    assert len(report.taken) + len(report.fresh) == 499
    assert str(report) == f"took {len(report.taken)} of 499 tensors; new: head.class_branches ({len(report.fresh)})"


def test_rows_of_classes_with_the_same_name_are_taken() -> None:
    source = registry.build("yolo11n", num_classes=3)
    source.state_dict()["head.class_branches.1.2.bias"].normal_()
    detector = registry.build("yolo11n", num_classes=2)
    fresh = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    report = transfer(detector, source.state_dict(), ["hole", "Dent "], ["scratch", "dent", "stain"])
    own, theirs = detector.state_dict(), source.state_dict()
    assert report.classes == ("Dent ",)
    for level in range(3):
        for part in ("weight", "bias"):
            name = f"head.class_branches.{level}.2.{part}"
            assert torch.equal(own[name][1], theirs[name][1])
            assert torch.equal(own[name][0], fresh[name][0])
    assert len(report.fresh) == 6

    assert transfer(detector, source.state_dict(), ["hole", "knot"], ["scratch", "dent", "stain"]).classes == ()


def test_branches_that_find_objects_once_begin_as_those_of_the_file_that_find_them_many_times() -> None:
    source = registry.build("yolo11n", num_classes=3)
    source.state_dict()["head.class_branches.1.2.bias"].normal_()
    detector = registry.build("yolo11n", num_classes=2, paths="both")
    fresh = detector.state_dict()["head.one_to_one_class_branches.1.2.bias"].clone()
    report = transfer(detector, source.state_dict(), ["hole", "dent"], ["scratch", "dent", "stain"])
    own, theirs = detector.state_dict(), source.state_dict()
    for name in own:
        if name.startswith("head.one_to_one_") and ".2." not in name:
            assert torch.equal(own[name], theirs[name.replace("one_to_one_", "")]), name
    assert own["head.one_to_one_class_branches.1.2.bias"][1] == theirs["head.class_branches.1.2.bias"][1]
    assert own["head.one_to_one_class_branches.1.2.bias"][0] == fresh[0]
    assert len(report.taken) + len(report.fresh) == len(own)
    assert len(report.unused) == 6  # of other classes
    assert all(name in theirs for name in report.unused)

    # weights with both kinds give each its own
    both = {name: torch.full_like(tensor, float("one_to_one" in name)) for name, tensor in own.items()}
    assert transfer(detector, both).fresh == ()
    assert all((tensor == float("one_to_one" in name)).all() for name, tensor in detector.state_dict().items())


def test_branches_go_to_those_of_their_stride_where_one_network_has_a_level_more() -> None:
    coarse, fine = (registry.build(name, num_classes=2, class_width=80) for name in ("yolo11n", "yolo11n-p2"))
    report = transfer(fine, coarse.state_dict())
    assert {".".join(name.split(".")[:3]) for name in report.fresh} == {
        "neck.top_down2.conv_in", "neck.top_down2.blocks", "neck.top_down2.conv_out", "neck.downsample3.conv",
        "neck.downsample3.bn", "neck.bottom_up3.conv_in", "neck.bottom_up3.blocks", "neck.bottom_up3.conv_out",
        "head.box_branches.0", "head.class_branches.0",
    }  # fmt: skip
    assert not report.unused
    for level in range(3):
        assert torch.equal(fine.head.get_parameter(f"box_branches.{level + 1}.1.conv.weight"),
                           coarse.head.get_parameter(f"box_branches.{level}.1.conv.weight"))  # fmt: skip
    again = registry.build("yolo11n", num_classes=2, class_width=80)
    report = transfer(again, fine.state_dict())
    assert not report.fresh
    assert all(torch.equal(tensor, coarse.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_rows_of_classes_behind_layers_of_another_width_are_not_taken() -> None:
    source, detector = (registry.build("yolo11n", count, class_width=width) for count, width in ((3, 64), (2, 80)))
    before = detector.state_dict()["head.class_branches.0.2.bias"].clone()
    report = transfer(detector, source.state_dict(), ("b", "a"), ("a", "b", "c"))
    assert (report.classes, "head.class_branches.0.2.bias" in report.fresh) == ((), True)
    assert torch.equal(detector.state_dict()["head.class_branches.0.2.bias"], before)
    assert str(report) == "took 448 of 499 tensors; new: head.class_branches (51)"


def test_what_does_not_belong_is_not_used() -> None:
    detector = registry.build("yolo11n", num_classes=3)
    source = detector.state_dict() | {"neck.attention.weight": torch.zeros(1)}
    report = transfer(detector, source)
    assert report.fresh == ()
    assert str(report) == "took 499 of 499 tensors; not used: neck.attention (1)"


def filled(name: str, num_classes: int, value: float) -> Detector:
    detector = registry.build(name, num_classes)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.fill_(value)
    return detector


def test_an_anchor_based_head_takes_the_rows_of_boxes_and_of_classes_of_the_same_name() -> None:
    detector, source = filled("yolov5n", 2, 0.0), filled("yolov5n", 3, 1.0)
    report = transfer(detector, source.state_dict(), ("dent", "hole"), ("scratch", "crack", "Dent "))
    assert report.classes == ("dent",)
    bias = detector.state_dict()["head.predictions.1.bias"].view(3, 7)
    assert bias.tolist() == [[1.0] * 5 + [1.0, 0.0]] * 3


def test_the_class_row_of_a_single_class_is_no_use_to_an_anchor_based_head() -> None:
    """It is never trained: the objectness alone says what there is."""
    detector, source = filled("yolov5n", 1, 0.0), filled("yolov5n", 3, 1.0)
    report = transfer(detector, source.state_dict(), ("person",), ("person", "car", "dog"))
    assert report.classes == ()
    assert detector.state_dict()["head.predictions.0.bias"].view(3, 6).tolist() == [[1.0] * 5 + [0.0]] * 3


def test_heads_with_other_numbers_of_anchors_share_no_rows() -> None:
    detector, source = filled("yolov5n", 2, 0.0), filled("yolov5n", 2, 1.0)
    detector.head = AnchorBasedHead([64, 128, 256], 2, (8, 16, 32), [[(10, 10), (20, 20)]] * 3)
    before = detector.state_dict()["head.predictions.0.bias"].clone()
    report = transfer(detector, source.state_dict(), ("a", "b"), ("b", "a"))
    assert report.classes == ()
    assert torch.equal(detector.state_dict()["head.predictions.0.bias"], before)


def test_metadata_of_an_own_network_without_its_digest_is_told(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text("")
    metadata = {"model": "my_model.py:build", "model_arguments": {"num_classes": 3}}
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, metadata)
    with pytest.raises(UserError, match="is not the file that these weights were trained with"):
        load_model(tmp_path / "w.safetensors")
