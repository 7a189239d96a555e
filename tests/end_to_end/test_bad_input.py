"""Whatever is wrong, one clear line says what to do: exit code 2 for usage, 1 for failure, never a traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import TINY, Command
from yoloyard.models import registry
from yoloyard.models.weights import save_weights

Spoil = Callable[[Path], list[object]]


def text(data: Path, old: str, new: str) -> None:
    content = data.read_text()
    assert old in content
    data.write_text(content.replace(old, new))


def wrong_key(data: Path) -> list[object]:
    text(data, "train:", "trian:")
    return []


def no_names(data: Path) -> list[object]:
    data.write_text("\n".join(line for line in data.read_text().splitlines() if line.startswith(("train", "val"))))
    return []


def broken_yaml(data: Path) -> list[object]:
    data.write_text("train: [images\nval: {")
    return []


def no_images(data: Path) -> list[object]:
    for image in (data.parent / "images" / "train").iterdir():
        image.unlink()
    return []


def no_labels(data: Path) -> list[object]:
    for label in (data.parent / "labels" / "train").iterdir():
        label.unlink()
    return []


def cut_weights(data: Path) -> list[object]:
    path = data.with_name("cut.safetensors")
    save_weights(path, registry.build("yolo11n", 5).state_dict(), {"model": "yolo11n", "model_arguments": {}})
    path.write_bytes(path.read_bytes()[:-1000])
    return ["--weights", path]


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda data: ["--data", data.with_name("nothing.yaml")], 2, "nothing.yaml"),
        (wrong_key, 2, "'train'"),
        (no_names, 2, "names"),
        (broken_yaml, 2, "line"),
        (no_images, 1, "no images"),
        (no_labels, 1, "label"),
        (lambda data: ["--model", "yolo11q"], 2, "yolo11n, yolo11s"),
        (cut_weights, 1, "cut"),
        (lambda data: ["--weights", data.with_name("no.safetensors")], 1, "no.safetensors"),
        (lambda data: ["--batch", 0], 2, "'batch' must be at least 1"),
        (lambda data: ["--epochs", "many"], 2, "--epochs"),
        (lambda data: ["--device", "7"], 2, "there is no device '7'"),
        (lambda data: ["--device", "tpux"], 2, "unknown device"),
        (lambda data: ["--epoch", 3], 2, "--epochs"),
        (lambda data: ["--optimizer", "Adagrad"], 2, "SGD, AdamW"),
        (lambda data: ["--best-by", "map_5"], 2, "map"),
        (lambda data: ["--freeze", "stme."], 2, "stem"),
        (lambda data: ["--project", data / "x"], 1, "cannot write"),
        (lambda data: ["--resume", data.parent], 1, "no whole checkpoint in"),
        (lambda data: ["--resume", "runs/lien"], 2, "there is no run runs/lien; `yoloyard runs` lists"),
        (lambda data: ["--cache", "tape"], 2, "there are ram and disk"),
        (lambda data: ["--config", data.with_name("no.yaml")], 2, "no.yaml"),
    ],
)
def test_training(spoil: Spoil, code: int, message: str, data: Path, yoloyard: Command) -> None:
    flags = spoil(data)
    words = ["train", *TINY, "--data", data, "--epochs", 1]
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    found, out, err = yoloyard(*words)
    assert found == code, (out, err)
    assert message in err
    assert err.startswith("yoloyard: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predict"], 2, "--weights"),
        (["predict", "--weights", "no.safetensors", "x.jpg"], 1, "no.safetensors"),
        (["val", "--weights", "no.safetensors", "--data", "no.yaml"], 1, "no.safetensors"),
        (["info", "yolo11"], 2, "yolo11n"),
        (["info", "no.pth"], 1, "cannot read the weights no.pth: No such file"),
        (["trian"], 2, "train"),
        (["train", "epoch=3"], 2, "--epochs"),
    ],
)
def test_other_commands(words: list[str], code: int, message: str, yoloyard: Command) -> None:
    found, _, err = yoloyard(*words)
    assert found == code
    assert message in err
    assert err.count("\n") == 1


def test_an_image_size_off_the_stride_is_rounded_up_and_said_once(data: Path, yoloyard: Command) -> None:
    words = [word if word != "64" else "70" for word in map(str, TINY)]
    code, out, err = yoloyard("train", *words, "--data", data, "--epochs", 1)
    assert (code, err) == (0, "")
    assert out.count("imgsz 70") == 1
    assert "96 is used" in out


def test_bad_labels_are_named_with_file_and_line_and_the_rest_is_used(data: Path, yoloyard: Command) -> None:
    label = sorted((data.parent / "labels" / "train").iterdir())[0]
    label.write_text("0 0.5 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1\n")
    code, out, _ = yoloyard("train", *TINY, "--data", data, "--epochs", 1)
    assert code == 0
    assert f"{label.name}:2" in out


def test_debug_shows_the_traceback(yoloyard: Command) -> None:
    _, _, err = yoloyard("info", "yolo11q", "--debug")
    assert "Traceback" in err


def test_a_run_connects_to_nothing_but_this_machine(data: Path) -> None:
    """Every socket and every name that is looked up is seen by the interpreter's audit hook."""
    program = f"""
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments
        if isinstance(address, tuple) and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            print("CONNECTS", event, address, file=sys.stderr)
sys.addaudithook(watch)
from yoloyard.cli.main import main
main({["train", *map(str, TINY), "--data", str(data), "--epochs", "1", "--workers", "1", "--tensorboard"]!r})
"""
    program = program.replace("'--no-tensorboard', ", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONNECTS" not in done.stderr
