"""client.py beside exported files: the boxes of `yoloyard predict` with numpy, OpenCV and ONNX Runtime alone."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_job import NAMES, SHOWN, tiny_job

from yoloyard.cli.main import main
from yoloyard.demo.write import demo_image
from yoloyard.export import onnx_file
from yoloyard.export.preprocess import CLIENT, write_client

Folder = Callable[[str, bool], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of an export with these outputs, dynamic or not; made once."""
    made: dict[tuple[str, bool], Path] = {}

    def folder(outputs: str, dynamic: bool) -> Path:
        if (outputs, dynamic) not in made:
            shape = None if dynamic else (96, 96)
            job = tiny_job(tmp_path_factory.mktemp("export"), outputs, shape)
            write_client(job, {"onnx": onnx_file.write(job)})
            made[outputs, dynamic] = job.folder
        return made[outputs, dynamic]

    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several shapes and kinds: smaller and larger than the input, grey, turned by EXIF, transparent."""
    folder = tmp_path_factory.mktemp("images")
    drawings = [demo_image(0, "val", number, 150).pixels for number in range(1, 5)]
    Image.fromarray(drawings[0][:, :111]).save(folder / "portrait.png")
    Image.fromarray(drawings[1][:47]).save(folder / "landscape.jpg")
    Image.fromarray(drawings[2][:64, :80]).convert("L").save(folder / "grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(drawings[3][:97]).save(folder / "turned.jpg", exif=turned)
    alpha = np.tile(np.linspace(0, 255, 150).astype(np.uint8), (120, 1))
    Image.fromarray(np.dstack((drawings[0][30:], alpha))).save(folder / "transparent.png")
    Image.fromarray(drawings[0][40:52]).save(folder / "strip.bmp")
    Image.fromarray(drawings[2][:96, :96]).save(folder / "fits.png")
    return sorted(folder.iterdir())


def client(folder: Path, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", str(folder / "client.py"), *map(str, arguments)]
    paths = os.pathsep.join([*variables.values(), *(path for path in sys.path if path.endswith("-packages"))])
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})


KINDS = [
    ("boxes", True),
    *(pytest.param(*kind, marks=pytest.mark.slow) for kind in (("boxes", False), ("nms", True), ("nms", False))),
]


@pytest.mark.parametrize(("outputs", "dynamic"), KINDS)
def test_it_finds_the_boxes_that_predict_finds(
    outputs: str, dynamic: bool, folder_of: Folder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(outputs, dynamic)
    monkeypatch.chdir(tmp_path)
    predict = ["predict", "--weights", folder / "best.onnx", "--save-json", "--device", "cpu", *images]
    with pytest.raises(SystemExit, match="0"):
        main([str(word) for word in predict])
    expected = json.loads(Path("runs/predict/predictions.json").read_text())
    assert len({row["image"] for row in expected}) == len(images)
    assert len({row["label"] for row in expected}) == len(NAMES)

    done = client(folder, folder / "best.onnx", *images)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_it_imports_numpy_opencv_and_onnx_runtime_alone() -> None:
    tree = ast.walk(ast.parse(CLIENT.read_text(encoding="utf-8")))
    modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    assert modules - sys.stdlib_module_names == {"cv2", "numpy", "onnxruntime"}


def test_it_keeps_onnx_runtime_from_reporting_to_its_maker(folder_of: Folder, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, sys\nsys.exit(os.environ['ORT_DISABLE_TELEMETRY'])")
    assert client(folder_of("boxes", True), "best.onnx", "a.png", first=str(tmp_path)).stderr == "1\n"


SIXTEEN_BITS = cv2.imencode(".png", np.zeros((9, 9), np.uint16))[1].tobytes()


@pytest.mark.parametrize("content", [b"", b"text", SIXTEEN_BITS], ids=["empty", "text", "16 bits"])
def test_what_is_no_image_of_8_bits_ends_it_with_a_line(content: bytes, folder_of: Folder, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    done = client(folder_of("boxes", True), folder_of("boxes", True) / "best.onnx", path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{path} is no image of 8 bits"


def test_without_images_it_says_how_it_is_used(folder_of: Folder) -> None:
    done = client(folder_of("boxes", True), "best.onnx")
    assert done.returncode == 1
    assert "python client.py best.onnx IMAGE" in done.stderr


def test_preprocess_json_says_all_that_a_program_must_know(folder_of: Folder) -> None:
    facts = json.loads((folder_of("boxes", True) / "preprocess.json").read_text(encoding="utf-8"))
    assert facts["names"] == list(NAMES)
    assert (facts["input"], facts["outputs"], facts["files"]) == ("images", ["boxes", "scores"], {"onnx": "best.onnx"})
    assert (facts["imgsz"], facts["shape"], facts["multiple"], facts["strides"]) == (96, None, 32, [8, 32])
    assert (facts["layout"], facts["colours"], facts["input_range"]) == ("NCHW", "RGB", [0, 1])
    assert (facts["fill"], facts["interpolation"]) == (114, "bilinear")
    assert facts["suppression"] == {**SHOWN, "max_det": 300}
    assert (facts["licence"], facts["weights_sha256"]) == ("Apache-2.0", "0" * 64)


@pytest.mark.parametrize(("outputs", "file"), [("maps", "best.onnx"), ("boxes", "best.xml")])
def test_no_client_is_written_for_files_that_it_cannot_use(outputs: str, file: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, outputs)
    written = write_client(job, {"target": tmp_path / file})
    assert written == [tmp_path / "preprocess.json"]
    assert json.loads(written[0].read_text())["outputs"] == {"maps": ["map_8", "map_32"]}.get(
        outputs, ["boxes", "scores"]
    )
