"""client.py beside exported files: the boxes of `yoloyard predict` with numpy, OpenCV and ONNX Runtime alone."""

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from exported_files import document, write_onnx
from tiny_job import tiny_job
from tiny_network import Tiny
from yoloyard.cli.main import main
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.config.settings import ExportConfig
from yoloyard.data.pixels.decode import decode_image
from yoloyard.demo.write import demo_image
from yoloyard.export import onnx_file
from yoloyard.export.job import Job
from yoloyard.export.preprocess import CLIENT, write_client
from yoloyard.runtimes.metadata import FileFacts

SHAPE = (64, 64)


def patches(
    folder: Path, shape: tuple[int, int] | None, needs_suppression: bool = True, imgsz: int | list[int] = 64
) -> Path:
    """An export of a network of one convolution, made in no time."""
    metadata = {**json.loads(document(shape=shape, needs_suppression=needs_suppression)), "imgsz": imgsz}
    text = json.dumps(metadata)
    facts = FileFacts(**metadata.pop("file"))
    metadata["licence"] = "Apache-2.0"
    job = Job(ExportConfig(), Path("best.safetensors"), Tiny(2), metadata, facts, folder)
    file = write_onnx(folder / "best.onnx", text, ("batch", 3, *(shape or ("height", "width"))))
    write_client(job, {"onnx": file})
    return folder


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an export that takes any multiples of 32."""
    return patches(tmp_path_factory.mktemp("dynamic"), None)


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


def compared_with_predict(folder: Path, images: list[Path]) -> set[int]:
    """The labels that both find."""
    predict = ["predict", "--weights", folder / "best.onnx", "--save-json", "--device", "cpu", *images]
    with pytest.raises(SystemExit, match="0"):
        main([str(word) for word in predict])
    expected = json.loads(Path("runs/predict/predictions.json").read_text())
    assert len({row["image"] for row in expected}) >= len(images) - 1  # the strip may have none

    done = client(folder, folder / "best.onnx", *images)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    return {row["label"] for row in expected}


@pytest.mark.parametrize(("shape", "imgsz"), [(SHAPE, 64), (None, 64), ((64, 96), [64, 96]), (None, [64, 160])])
def test_it_finds_the_boxes_that_predict_finds(
    shape: tuple[int, int] | None,
    imgsz: int | list[int],
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compared_with_predict(patches(tmp_path, shape, imgsz=imgsz), images)


def test_it_suppresses_nothing_where_the_network_finds_each_object_once(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compared_with_predict(patches(tmp_path, None, needs_suppression=False), images)


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "shape"), [("boxes", None), ("nms", None), ("nms", (96, 96))])
def test_it_finds_the_boxes_of_a_true_export(
    outputs: str,
    shape: tuple[int, int] | None,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tiny_job(tmp_path, outputs, shape)
    write_client(job, {"onnx": onnx_file.write(job)})
    assert len(compared_with_predict(tmp_path, images)) > 2


@pytest.mark.parametrize("window", [None, (20, 200), (100, 3000)], ids=str)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_reads_what_yoloyard_decodes(
    channels: int, bits: int, window: tuple[float, float] | None, images: list[Path], tmp_path: Path
) -> None:
    read = runpy.run_path(str(CLIENT))["read"]
    pixels, random = PixelSpec(channels, bits, window), np.random.default_rng(3)
    for name, most, kind in (("8.png", 256, np.uint8), ("12.png", 4096, np.uint16), ("16.png", 65536, np.uint16),
                             ("8.bmp", 256, np.uint8), ("8.webp", 256, np.uint8)):  # fmt: skip
        for shape in ((20, 30), (20, 30, 3), (20, 30, 4)):
            cv2.imwrite(str(tmp_path / f"{len(shape) * shape[-1]}_{name}"), random.integers(0, most, shape, kind))
    empty = random.integers(0, 256, (20, 30, 4), np.uint8) * np.array([1, 1, 1, 0], np.uint8)
    for name in ("empty.bmp", "empty.png"):
        cv2.imwrite(str(tmp_path / name), empty)
    faint = random.integers(0, 65536, (20, 30, 4), np.uint16) // np.array([1, 1, 1, 32], np.uint16)
    cv2.imwrite(str(tmp_path / "faint.png"), faint)  # the depths of colours and of alpha differ
    Image.fromarray(random.integers(0, 256, (20, 30, 2), np.uint8), "LA").save(tmp_path / "grey_alpha.png")

    for path in [*images, *tmp_path.iterdir()]:
        expected = decode_image(path, pixels=pixels)
        assert np.array_equal(read(str(path), **json.loads(json.dumps(pixels.as_dict()))), expected), path.name


def test_it_imports_numpy_opencv_and_onnx_runtime_alone() -> None:
    tree = ast.walk(ast.parse(CLIENT.read_text(encoding="utf-8")))
    modules = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    assert modules - sys.stdlib_module_names == {"cv2", "numpy", "onnxruntime"}


def test_it_keeps_onnx_runtime_from_reporting_to_its_maker(dynamic: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, sys\nsys.exit(os.environ['ORT_DISABLE_TELEMETRY'])")
    assert client(dynamic, "best.onnx", "a.png", first=str(tmp_path)).stderr == "1\n"


FLOATS = cv2.imencode(".tif", np.zeros((9, 9), np.float32))[1].tobytes()


@pytest.mark.parametrize("content", [b"", b"text", FLOATS], ids=["empty", "text", "floats"])
def test_what_is_no_image_of_8_or_16_bits_ends_it_with_a_line(content: bytes, dynamic: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    done = client(dynamic, dynamic / "best.onnx", path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{path} is no image of 8 or 16 bits"


def test_without_images_it_says_how_it_is_used(dynamic: Path) -> None:
    done = client(dynamic, "best.onnx")
    assert done.returncode == 1
    assert "python client.py best.onnx IMAGE" in done.stderr


def test_preprocess_json_says_all_that_a_program_must_know(dynamic: Path) -> None:
    facts = json.loads((dynamic / "preprocess.json").read_text(encoding="utf-8"))
    assert facts["names"] == ["scratch", "dent"]
    assert (facts["input"], facts["outputs"], facts["files"]) == ("images", ["boxes", "scores"], {"onnx": "best.onnx"})
    assert (facts["imgsz"], facts["shape"], facts["multiple"], facts["strides"]) == (64, None, 32, [32])
    assert (facts["layout"], facts["colours"], facts["input_range"]) == ("NCHW", "RGB", [0, 1])
    assert (facts["fill"], facts["interpolation"]) == (114, "bilinear")
    assert facts["suppression"] == {"conf": 0.4, "iou": 0.6, "max_det": 300}
    assert (facts["licence"], facts["weights_sha256"]) == ("Apache-2.0", "0")


@pytest.mark.parametrize(("outputs", "file"), [("maps", "best.onnx"), ("boxes", "best.xml")])
def test_no_client_is_written_for_files_that_it_cannot_use(outputs: str, file: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, outputs)
    write_client(job, {"target": tmp_path / file})
    [written] = tmp_path.iterdir()
    assert json.loads(written.read_text())["outputs"] == {"maps": ["map_8", "map_32"]}.get(outputs, ["boxes", "scores"])
