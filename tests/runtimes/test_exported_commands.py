"""The commands take exported files where they take a weights file."""

import json
from pathlib import Path

import pytest

from exported_files import Files, document, write_ir, write_onnx
from yoloyard.cli.main import main
from yoloyard.commands.val import validate
from yoloyard.common.errors import UserError
from yoloyard.demo.write import write_demo
from yoloyard.evaluation.report import plots
from yoloyard.storage.fetch import local_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 validation images of the demo set at 96 pixels; the data.yaml, of two classes."""
    path = write_demo(tmp_path_factory.mktemp("tiny") / "line", seed=3, train=2, val=6, size=96)
    names = path.read_text().index("names")
    path.write_text(path.read_text()[:names] + "names: [scratch, dent]\n")
    for file in path.parent.glob("labels/*/*.txt"):
        rows = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{int(row[0]) % 2} {' '.join(row[1:])}\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache and the working directory are the test's; figures are left out."""
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "figure_svg", lambda figure: "<svg></svg>")


def run(*arguments: object) -> int | str | None:
    """The exit code of a command that is run in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in arguments])
    return end.value.code


def rows_of(folder: Path) -> list[tuple[int, int, float]]:
    rows = json.loads((folder / "predictions.json").read_text())
    return sorted((row["image_id"], row["category_id"], round(row["score"], 4)) for row in rows)


def test_validation_is_the_same_with_all_runtimes_and_batches(
    files: Files, data: Path, said: list[str], tmp_path: Path
) -> None:
    one = write_onnx(tmp_path / "one.onnx", document(), shape=(1, 3, "height", "width"))
    paths = (files[".onnx"], files[".xml"], one)
    found, *others = [rows_of(validate(path, data, save_json=True, conf=0.3).folder) for path in paths]
    assert len(found) > 20
    assert others == [found, found]
    assert not any("--amp" in line for line in said)


@pytest.mark.slow
def test_validation_with_programs_of_torch(files: Files, data: Path) -> None:
    paths = [files[suffix] for suffix in (".onnx", ".pt2", ".torchscript")]
    found, *others = [rows_of(validate(path, data, save_json=True, conf=0.3).folder) for path in paths]
    assert others == [found, found]


def test_validation_pads_to_the_shape_of_a_file(data: Path, said: list[str], tmp_path: Path) -> None:
    path = write_ir(tmp_path / "best.xml", document(shape=(96, 160)), shape=("batch", 3, 96, 160))
    done = validate(path, data, save_json=True, conf=0.3)
    assert rows_of(done.folder)
    assert said[0] == "best.xml takes images of 96 x 160 pixels alone: all are padded to that"
    assert not any("multiple of the stride" in line for line in said)


def test_validation_of_another_programs_file_takes_the_names_of_the_data(data: Path, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "other.onnx", outputs=("joined",), shape=(1, 3, 96, 96))
    assert rows_of(validate(path, data, names=data, save_json=True, conf=0.3).folder)


def test_predict_and_info_and_train(files: Files, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = data.parent / "images/val"
    assert run("predict", images, "--weights", files[".onnx"], "--conf", 0.3, "--save-json") == 0
    assert "6 images; results in runs/predict" in capsys.readouterr().out
    assert json.loads(Path("runs/predict/predictions.json").read_text())
    assert run("info", files[".xml"]) == 0
    out = capsys.readouterr().out
    assert "names: ['scratch', 'dent']" in out
    assert "'outputs': 'boxes'" in out
    for flag in ("--weights", "--model"):
        assert run("train", "--data", data, flag, files[".torchscript"]) == 1
        assert "best.torchscript is an exported file: this takes the weights file" in capsys.readouterr().err


def test_info_of_another_programs_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_onnx(tmp_path / "other.onnx")
    assert run("info", path) == 0
    assert capsys.readouterr().out == f"{path} has no metadata of yoloyard\n"


def test_an_exported_file_may_lie_in_an_object_store(files: Files) -> None:
    pytest.importorskip("obstore")
    copy = local_weights(f"file://{files['.onnx']}")
    assert copy.suffix == ".onnx"
    assert copy.read_bytes() == files[".onnx"].read_bytes()
    with pytest.raises(UserError, match=r"best\.xml needs its \.bin beside it: fetch both, or use an \.onnx file"):
        local_weights(f"file://{files['.xml']}")
