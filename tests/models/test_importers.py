"""Files of torch.save: the families' checkpoints are understood, and nothing that a file names is ever run."""

import builtins
import contextlib
import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foreign import Options, published_network
from reference import formula_images, formula_state_dict
from yoloyard.common.errors import UserError
from yoloyard.models import registry
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorBasedHead
from yoloyard.models.importing.importers import read_checkpoint
from yoloyard.models.importing.inert_pickle import Storage, TensorView, as_mapping, as_tensor
from yoloyard.models.importing.torch_files import Checkpoint, names_in
from yoloyard.models.weights import load_model


def formula_detector(name: str, num_classes: int, **arguments: Any) -> Detector:
    with torch.device("meta"):
        detector = registry.build(name, num_classes, **arguments)
    detector.load_state_dict(formula_state_dict(detector), assign=True)
    return detector.eval()


@pytest.mark.usefixtures("foreign_classes")
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # of the legacy format, for classes without a file
@pytest.mark.parametrize(
    ("name", "legacy"),
    [(name, False) for name in ("yolov8n", "yolov8n-p2", "yolo11n", "yolo12n", "yolov13n", "yolo26n")]
    + [("yolov8n", True)],
)
def test_a_checkpoint_is_recognised_and_read(name: str, legacy: bool, tmp_path: Path) -> None:
    detector = formula_detector(name, num_classes=5, class_width=80)  # as fine-tuned from 80 classes
    network = published_network(detector)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stale = published_network(formula_detector("yolov8n", num_classes=2))
    content = {
        "model": stale,
        "ema": network,
        "epoch": 3,
        "train_args": {"imgsz": 416, "data": Path("factory.yaml")},
        "options": Options(),
        "license": "AGPL-3.0 (https://example.org)",
    }
    torch.save(content, tmp_path / "last.pt", _use_new_zipfile_serialization=not legacy)

    loaded, metadata = load_model(tmp_path / "last.pt")
    assert metadata["model"] == name
    paths = {"paths": "both"} if name == "yolo26n" else {}
    assert metadata["model_arguments"] == {"num_classes": 5, "channels": 3, "class_width": 80} | paths
    assert "evaluation" not in metadata
    assert metadata["names"] == ["class 0", "class 1", "class 2", "class 3", "class 4"]
    assert metadata["imgsz"] == 416
    assert metadata["licence"] == "AGPL-3.0 (https://example.org)"
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in detector.state_dict().items())


@pytest.mark.usefixtures("foreign_classes")
def test_half_precision_list_names_and_an_sppf_without_activation(tmp_path: Path) -> None:
    detector = formula_detector("yolo11n", num_classes=2, channels=1)
    network = published_network(detector, sppf_activation=False).half()
    network.names = ["ok", "broken"]  # type: ignore[assignment]
    torch.save({"model": network, "ema": None}, tmp_path / "best.pt")

    loaded, metadata = load_model(tmp_path / "best.pt")
    assert metadata["names"] == ["ok", "broken"]
    assert metadata["licence"] == "AGPL-3.0"
    assert metadata["model_arguments"]["sppf_activation"] is False
    state = loaded.state_dict()
    for name, tensor in detector.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor.half().to(tensor.dtype)), name
    assert isinstance(loaded.get_submodule("backbone.pool.conv_in.activation"), nn.Identity)


@pytest.mark.usefixtures("foreign_classes")
@pytest.mark.parametrize("name", ["yolov5n", "yolov5s6"])
def test_an_anchor_based_checkpoint_keeps_its_own_anchors(name: str, tmp_path: Path) -> None:
    detector = formula_detector(name, num_classes=2)
    assert isinstance(detector.head, AnchorBasedHead)
    detector.head.anchors.mul_(1.5)
    network = published_network(detector)
    stride = network.get_submodule(f"model.{len(detector.blocks) - 1}")
    stride.register_buffer("anchor_grid", torch.zeros(3, 1, 3, 1, 1, 2))  # as older files have it
    content: dict[str, Any] = {
        "model": network,
        "ema": None,
        "opt": {"imgsz": 512},
        "optimizer": {"state": {}},
        "git": None,
    }
    torch.save(content, tmp_path / "best.pt")

    loaded, metadata = load_model(tmp_path / "best.pt")
    assert metadata["model"] == name
    assert metadata["model_arguments"] == {"num_classes": 2, "channels": 3}
    assert (metadata["imgsz"], metadata["licence"]) == (512, "AGPL-3.0")
    assert metadata["evaluation"] == {"iou": 0.6}
    state = loaded.state_dict()
    for own, tensor in detector.state_dict().items():
        assert torch.allclose(state[own], tensor, rtol=1e-6), own


@pytest.mark.usefixtures("foreign_classes")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("yolov5n", {}), ("yolo11n", {}), ("yolov13n", {}), ("yolo26n", {"paths": "many"}), ("yolo26n", {"paths": "one"})],
)
def test_a_fused_file_computes_the_same(name: str, arguments: dict[str, str], tmp_path: Path) -> None:
    detector = formula_detector(name, num_classes=2, **arguments)
    network = published_network(detector)
    for module in network.modules():
        if {"bn", "conv"} <= module._modules.keys():  # separable convolutions are saved with their normalisation
            norm, conv = module.get_submodule("bn").state_dict(), module.get_submodule("conv")
            factor = norm["weight"] / (norm["running_var"] + 1e-3).sqrt()
            conv.weight = nn.Parameter(conv.state_dict()["weight"] * factor.view(-1, 1, 1, 1))
            conv.bias = nn.Parameter(norm["bias"] - norm["running_mean"] * factor)
            del module._modules["bn"]
    torch.save({"model": network}, tmp_path / "fused.pt")

    loaded, metadata = load_model(tmp_path / "fused.pt")
    assert metadata["fused"] is True
    assert metadata["model_arguments"].get("paths") == arguments.get("paths")
    finds_once = arguments == {"paths": "one"}
    assert loaded.head.needs_suppression is not finds_once
    assert (metadata.get("evaluation") == {"suppression": "off"}) is finds_once
    images = formula_images("fused", 1, 64, 96)
    with torch.no_grad():
        for expected, actual in zip(detector(images), loaded(images), strict=True):
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def change_activation(network: nn.Module) -> None:
    network.get_submodule("model.3").add_module("act", nn.ReLU())


def change_eps(network: nn.Module) -> None:
    network.get_submodule("model.3.bn").eps = 1e-5  # type: ignore[assignment]


def fuse_one_layer(network: nn.Module) -> None:
    network.get_submodule("model.0.conv").register_parameter("bias", nn.Parameter(torch.zeros(16)))


def add_a_layer(network: nn.Module) -> None:
    network.get_submodule("model.2").add_module("cv9", nn.Conv2d(3, 3, 1))


def drop_names(network: nn.Module) -> None:
    del network.names


@pytest.mark.usefixtures("foreign_classes")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_activation, "model.3 has the activation 'ReLU'"),
        (change_eps, "model.3 has eps 1e-05"),
        (fuse_one_layer, "names and shapes of its 500 tensors are those of no size of yolov5, "),
        (add_a_layer, "names and shapes of its 501 tensors are those of no size of yolov5, "),
        (drop_names, "not one name for each"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    change: Callable[[nn.Module], None], message: str, tmp_path: Path
) -> None:
    network = published_network(formula_detector("yolo11n", num_classes=2))
    change(network)
    torch.save({"model": network}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "other.pt")


def add_nothing(network: nn.Module) -> None:
    network.get_submodule("model.9").add = False  # type: ignore[assignment]


def activate_pooling(network: nn.Module) -> None:
    network.get_submodule("model.9.cv1").add_module("act", nn.SiLU())


@pytest.mark.usefixtures("foreign_classes")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_nothing, r"model\.9 pools or adds"),
        (activate_pooling, r"model\.9\.cv1 has the activation 'SiLU'"),
    ],
)
def test_a_yolo26_that_would_compute_something_else_is_refused(
    change: Callable[[nn.Module], None], message: str, tmp_path: Path
) -> None:
    network = published_network(formula_detector("yolo26n", num_classes=2))
    change(network)
    torch.save({"model": network}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "other.pt")


@pytest.mark.usefixtures("foreign_classes")
def test_branches_that_find_objects_once_by_distributions_are_refused(tmp_path: Path) -> None:
    network = published_network(formula_detector("yolo11n", num_classes=2, paths="both"))  # such as YOLOv10's
    torch.save({"model": network}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt holds a network \(DetectionModel\) .* only YOLO26's"):
        load_model(tmp_path / "other.pt")


@pytest.mark.usefixtures("foreign_classes")
def test_a_yolov13_with_attributes_of_another_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "BUILDERS", {"yolov13n": registry.BUILDERS["yolov13n"]})  # the others take time
    network, file = published_network(formula_detector("yolov13n", num_classes=2)), tmp_path / "other.pt"
    for place, attribute, value in (
        ("model.9.branch2.m.hgnn.edge_generator", "context", "mean"),
        ("model.9.branch1.m.hgnn.edge_generator", "scaling", 1.0),
        ("model.9.branch2.m.hgnn.edge_generator.dropout", "p", 0.2),
        ("model.6.m.1.0.attn", "area", 1),
    ):
        attributes = network.get_submodule(place).__dict__
        before, attributes[attribute] = attributes[attribute], value
        torch.save({"model": network}, file)
        with pytest.raises(UserError, match=rf"imported: {attribute} of {place} is {value}, not {before}"):
            load_model(file)
        attributes[attribute] = before


@pytest.mark.usefixtures("foreign_classes")
def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"model": published_network(formula_detector("yolo11n", num_classes=2))}, path)
    content = path.read_bytes()
    for kept in (5, 1000, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:kept])
        with pytest.raises(UserError, match=r"best\.pt"):
            load_model(path)
    middle = len(content) // 2  # inside a tensor
    path.write_bytes(
        content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 64]) + content[middle + 64 :]
    )
    with pytest.raises(UserError, match=r"best\.pt is damaged: 'data/.*' cannot be read"):
        load_model(path)


def test_files_that_hold_no_network_are_told(tmp_path: Path) -> None:
    torch.save({"model": None, "ema": None}, tmp_path / "empty.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    for name in ("empty.pt", "tensor.pt", "state.pt"):
        with pytest.raises(UserError, match="is no checkpoint of a detector"):
            load_model(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("holiday.jpg", b"")
    with pytest.raises(UserError, match=r"not one that torch\.save writes"):
        load_model(tmp_path / "photos.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_keep_their_offsets_and_strides(legacy: bool, tmp_path: Path) -> None:
    numbers = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "transposed": numbers.transpose(0, 2),
        "slice": numbers[1:, ::2, 1],
        "empty": numbers[:0],
        "scalar": torch.tensor(7),
        "parameter": nn.Parameter(numbers.bfloat16()),
        "bool": torch.tensor([True, False]),
    }
    content = {"model": OrderedDict(tensors)}
    torch.save(content, tmp_path / "tensors.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = Checkpoint(tmp_path / "tensors.pt")
    nodes = as_mapping(as_mapping(checkpoint.root)["model"])
    for name, expected in tensors.items():
        view = as_tensor(nodes[name])
        assert view is not None
        actual = checkpoint.read(view)
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected), name


class Reduce:
    """An object whose pickle asks the reader to call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def archive_of(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


def malicious_files(marker: Path) -> dict[str, bytes]:
    """Files whose reading by the usual reader creates `marker`."""
    touch = f"touch {marker}"
    by_eval = f"__import__('os').system({touch!r})"
    line = touch.encode()
    return {
        "os.system": saved(Reduce(os.system, touch)),
        "eval": saved({"model": Reduce(builtins.eval, by_eval)}),
        "nested in a dict": saved({"model": [{"deep": (1, Reduce(os.system, touch))}], "ema": None}),
        "as a tensor's storage": saved({"model": Reduce(torch._utils._rebuild_tensor_v2, Reduce(os.system, touch))}),
        "as an argument of a container": saved(OrderedDict(model=Reduce(os.system, touch))),
        "as a dict's key": archive_of(b"}cposix\nsystem\n(V" + line + b"\ntRI1\ns."),
        "in the legacy format": legacy({"model": Reduce(os.system, touch)}),
        "old opcodes": archive_of(b"(S'" + line + b"'\niposix\nsystem\n."),
        # a class gets a __setstate__ that calls what it is given
        "BUILD": archive_of(b"cargparse\nNamespace\n)\x81}(V__setstate__\ncposix\nsystem\nubV" + line + b"\nb."),
    }


@pytest.mark.parametrize("kind", malicious_files(Path("m")))
def test_a_malicious_file_runs_nothing(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "gift.pt"
    file.write_bytes(malicious_files(marker)[kind])

    with pytest.raises(UserError) as caught:
        load_model(file)
    assert "gift.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not marker.exists()

    # the usual reader runs it: the file is as bad as it looks
    # what comes after the call may fail; the call has happened
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        with contextlib.suppress(TypeError):
            pickle.loads(pickled)  # noqa: S301
    else:
        torch.load(file, weights_only=False)
    assert marker.exists()


HOSTILE = {
    "a key nested three million times": b"})" + b"\x85" * 3_000_000 + b"K\x01s.",  # {((((...)))): 1}
    "a memo of 64 GB": b"\x80\x02Nr\xff\xff\xff\xff.",  # LONG_BINPUT 4294967295
    "a string of 2 GB": b"\x80\x02X\xff\xff\xff\x7f.",
    "a module named by a huge number": (
        b"\x80\x02}X\x05\x00\x00\x00modelcm\nC\n)\x81}X\x08\x00\x00\x00_modules}\x8b\x00\x40\x00\x00"
        + b"\x01" * 0x4000
        + b"cm\nC\n)\x81ssbs."
    ),
}


@pytest.mark.slow
def test_each_hostile_file_ends_in_one_line(tmp_path: Path) -> None:
    """In a process of their own: some of these would end the interpreter or take all memory."""
    files = [tmp_path / f"{kind}.pt" for kind in HOSTILE]
    for file, content in zip(files, HOSTILE.values(), strict=True):
        file.write_bytes(archive_of(content))
    program = (
        "import resource, sys; from pathlib import Path; from yoloyard.models.weights import load_model\n"
        "from yoloyard.common.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for file in sys.argv[1:]:\n"
        "    try: load_model(Path(file))\n"
        "    except UserError as error: print(error, flush=True)\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "sys.exit(0 if grown < 2**20 else 'took more than a gigabyte')"
    )
    command = [sys.executable, "-c", program, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert [file.name in line for file, line in zip(files, lines, strict=True)] == [True] * len(files)


def test_a_damaged_directory_of_the_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    # As many entries as a network has, without its weights, which would be written 200 times.
    torch.save({"model": {f"layer {number}": torch.zeros(2) for number in range(350)}}, path)
    content = path.read_bytes()
    directory = content.rindex(b"PK\x05\x06")
    start = int.from_bytes(content[directory + 16 : directory + 20], "little")
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for place in random.integers(start, len(content), 2):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):  # or nothing that matters was hit
            Checkpoint(path)


def test_what_a_file_asks_for_is_listed(tmp_path: Path) -> None:
    torch.save({"model": Reduce(os.system, "true"), "list": OrderedDict()}, tmp_path / "gift.pt")
    assert names_in(tmp_path / "gift.pt") == ("collections.OrderedDict", "posix.system")
    (tmp_path / "plain.txt").write_text("nothing")
    assert names_in(tmp_path / "plain.txt") == ()


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0)}, tmp_path / "a.pt")
    checkpoint = Checkpoint(tmp_path / "a.pt")
    storage = Storage("0", torch.float32, 4)
    for view in (
        TensorView(storage, 1, (4,), (1,)),
        TensorView(storage, 0, (2,), (4,)),
        TensorView(storage, 0, (5,), (0,)),
        TensorView(storage, -1, (1,), (1,)),
        TensorView(storage, 3, (2,), (-1,)),
        TensorView(Storage("0", torch.float32, 400), 0, (400,), (1,)),
        TensorView(Storage("1", torch.float32, 4), 0, (4,), (1,)),
    ):
        with pytest.raises(UserError, match=r"a\.pt is damaged"):
            checkpoint.read(view)


def test_modules_nested_in_themselves_end(tmp_path: Path) -> None:
    class Loop:
        def __reduce__(self) -> tuple[Any, ...]:
            return (types.SimpleNamespace, (), {"_modules": {"again": self}})

    torch.save({"model": Loop()}, tmp_path / "loop.pt")
    with pytest.raises(UserError, match="nested without end"):
        read_checkpoint(tmp_path / "loop.pt")
