"""An exported file that can't be used is refused in one line that names it and says what to do."""

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper

import yoloyard
from exported_files import SUFFIXES, WRITERS, Files, document, save_onnx, write_ir, write_onnx, write_torchscript
from yoloyard.common.errors import UsageError, UserError
from yoloyard.models.weights import read_weights
from yoloyard.runtimes.load import load_runtime


def refusal(path: Path, **settings: object) -> str:
    """The line that loading a file raises."""
    with pytest.raises(UserError) as caught:
        yoloyard.load(path, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", ["the first half", "all but the last bytes", "noise", "nothing"])
def test_damaged_files(suffix: str, content: str, files: Files, tmp_path: Path) -> None:
    whole, path = files[suffix].read_bytes(), tmp_path / f"bad{suffix}"
    noise = torch.randint(0, 256, (10_000,), dtype=torch.uint8).numpy().tobytes()
    cut = {"the first half": whole[: len(whole) // 2], "all but the last bytes": whole[:-7], "noise": noise}
    path.write_bytes(cut.get(content, b""))
    (tmp_path / "bad.bin").write_bytes(files[".xml"].with_suffix(".bin").read_bytes())
    assert str(path) in (line := refusal(path, names=["a", "b"]))
    if content == "nothing":
        assert f"{path} is not whole: it was cut short, damaged, or is no {suffix} file" in line


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    for suffix in WRITERS:
        assert f"{tmp_path / f'none{suffix}'}: No such file" in refusal(tmp_path / f"none{suffix}")


def test_an_opset_that_onnx_runtime_does_not_know(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "new.onnx", document(), opset=999)
    assert f"{path} can't be loaded: " in (line := refusal(path))
    assert "official support for domain ai.onnx is till opset" in line


def test_a_version_of_the_format_that_onnx_runtime_does_not_know(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write_onnx(tmp_path / "new.onnx", document()))
    model.ir_version = 999
    onnx.save(model, tmp_path / "new.onnx")
    assert "IR version: 999" in refusal(tmp_path / "new.onnx")


def test_metadata_of_another_version(tmp_path: Path) -> None:
    for number, text in enumerate([document(format=2), "{}", "no JSON", document().replace('"strides"', '"steps"')]):
        path = write_onnx(tmp_path / f"{number}.onnx", text)
        assert refusal(path) == f"{path} was exported by another version of yoloyard: export it again with this one"


def test_an_onnx_file_that_is_no_detector(tmp_path: Path) -> None:
    def save(inputs: list[list[int]], output: str) -> Path:
        nodes = [helper.make_node("GlobalAveragePool", ["x0"], ["y"]), helper.make_node("Flatten", ["y"], ["z"])]
        values = [helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, shape) for n, shape in enumerate(inputs)]
        graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
        return save_onnx(tmp_path / "g.onnx", graph)

    line = refusal(save([[1, 3, 64, 64]], "z"), names=["a"])
    assert "g.onnx is no detector that can be used: it makes 1 x 3 of an image" in line
    assert "its input is 1 x 10 x 4 x 4, not images (B, 3, H, W)" in refusal(save([[1, 10, 4, 4]], "z"), names=["a"])
    assert "its input is 1 x 3 x 4 x 4, 1, not images" in refusal(save([[1, 3, 4, 4], [1]], "z"), names=["a"])


def test_outputs_that_are_none_for_each_image(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "best.onnx", document())
    import onnx

    model = onnx.load(path)
    [flat] = [each for each in model.graph.initializer if each.name == "flat"]
    flat.CopyFrom(onnx.numpy_helper.from_array(torch.tensor([-1, 6, 6]).numpy(), "flat"))
    onnx.save(model, path)
    runtime = load_runtime(path)
    runtime.candidates(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), 0.4, False)
    with pytest.raises(UserError, match=r"best\.onnx takes other images than it says"):
        runtime.candidates(torch.zeros(1, 3, 192, 192, dtype=torch.uint8), 0.4, False)


def test_maps_are_for_compilers(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "chip.onnx", document(outputs="maps"))
    assert f"{path} holds raw maps (--outputs maps), for the compilers of chips: use the weights file" in refusal(path)


def test_a_bin_that_is_missing_or_short(tmp_path: Path) -> None:
    path = write_ir(tmp_path / "best.xml", document())
    (tmp_path / "best.bin").write_bytes((tmp_path / "best.bin").read_bytes()[:100])
    assert f"{path} can't be loaded: " in refusal(path)
    (tmp_path / "best.bin").unlink()
    assert refusal(path) == f"{tmp_path / 'best.bin'} is missing: an OpenVINO file needs its .bin beside it"


@pytest.mark.parametrize(
    ("suffix", "module", "extra"), [(".onnx", "onnxruntime", "onnx"), (".xml", "openvino", "openvino")]
)
def test_a_package_that_is_missing(
    suffix: str, module: str, extra: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(files[suffix]).endswith(f'pip install "yoloyard[{extra}]"')


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_device_that_the_file_does_not_run_on(suffix: str, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yoloyard.runtimes.exported.choose_device", lambda name: torch.device("mps", 0))
    assert f"{files[suffix]} runs on cpu" in refusal(files[suffix], device="mps")
    assert yoloyard.load(files[suffix]).network.device == torch.device("cpu")  # auto


def test_onnx_runtime_without_cuda(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yoloyard.runtimes.exported.choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    line = refusal(files[".onnx"], device="cuda")
    assert line.endswith("runs on cpu here, not on cuda:0: NVIDIA's GPUs want onnxruntime-gpu in place of onnxruntime")


def test_names_that_are_missing_too_few_or_others(files: Files, tmp_path: Path) -> None:
    other = write_onnx(tmp_path / "other.onnx")
    line = f"{other} doesn't say its 2 classes: name them, --names a,b or --names data.yaml; `serve` takes files of "
    assert refusal(other).startswith(line)
    assert refusal(other, names="a,b,c") == f"--names says 3 classes (a, b, c), {other} has 2"
    assert refusal(files[".onnx"], names="a,b").endswith("best.onnx has 2: scratch, dent")
    assert yoloyard.load(files[".onnx"], names="scratch,dent").names == ("scratch", "dent")
    (tmp_path / "data.yaml").write_text("val: images\nnames: [x, y]")
    assert yoloyard.load(other, names=tmp_path / "data.yaml").names == ("x", "y")


def test_amp_is_refused(files: Files) -> None:
    with pytest.raises(UsageError, match=r"--amp is for weights files: .*best\.onnx is computed in the precision"):
        load_runtime(files[".onnx"], "cpu", amp=True)


def test_torchscript_without_metadata(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "a.torchscript")
    assert "TorchScript doesn't say what it takes: use an .onnx" in refusal(path, names=["a", "b"])


class Effect:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sample inputs", "constants", "expressions"])
def test_nothing_in_a_pt2_file_is_executed(place: str, files: Files, tmp_path: Path) -> None:
    mark, changed, pickled = tmp_path / "mark", tmp_path / "best.pt2", io.BytesIO()
    torch.save(Effect(mark), pickled)
    with zipfile.ZipFile(files[".pt2"]) as whole, zipfile.ZipFile(changed, "w") as archive:
        for name in whole.namelist():
            content = whole.read(name)
            if place == "sample inputs" and name.endswith("sample_inputs/model.pt"):
                content = pickled.getvalue()
            if place == "constants" and name.endswith("model_constants_config.json"):
                folder = name.removesuffix("model_constants_config.json")
                archive.writestr(f"{folder}opaque_obj_0", pickle.dumps(Effect(mark)))
                meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
                content = json.dumps({"config": {"effect": meta}}).encode()
            if place == "expressions" and name.endswith("models/model.json"):
                assert b"Integer(32)" in content
                content = content.replace(b"Integer(32)", f"open('{mark}', 'w')".encode())
            archive.writestr(name, content)
    line = refusal(changed)
    assert str(changed) in line
    assert not mark.exists()


def test_training_does_not_start_from_an_exported_file(files: Files) -> None:
    for suffix in (".onnx", ".xml", ".torchscript"):
        path = files[suffix]
        with pytest.raises(UserError, match=r"best\.\w+ is an exported file: this takes the weights file"):
            read_weights(path)
