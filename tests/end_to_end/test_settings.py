"""What a setting may be: numbers are never rounded, paths know `~`, and others' spellings are understood."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Command
from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.main import app
from yoloyard.common.errors import UsageError
from yoloyard.config.foreign import translated_overrides
from yoloyard.config.overrides import checked_overrides, read_overrides, whole_number, with_overrides
from yoloyard.config.settings import TrainConfig
from yoloyard.models.registry import plain_name


@pytest.mark.parametrize("text", ["12", "12.0", "1.2e1", " 12 ", "+12"])
def test_a_text_that_says_a_whole_number_is_one(text: str) -> None:
    assert whole_number(text) == 12


@pytest.mark.parametrize(
    "text", ["0.7", "12.5", "", "0x10", "inf", "-inf", "nan", "1e400", "True", "None", "1,5", "4 5"]
)
def test_a_text_that_says_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        whole_number(text)


@pytest.mark.parametrize("value", [4, 4.0, "4", "4.0", np.int64(4), np.float32(4)])
def test_a_whole_number_may_be_written_in_several_ways(value: Any) -> None:
    batch = checked_overrides(TrainConfig, {"batch": value})["batch"]
    assert (batch, type(batch)) == (4, int)


@pytest.mark.parametrize(
    "value", [0.7, 1.6, "0.7", np.float64(1.5), True, "True", None, "", [4], float("nan"), float("inf"), "0x10", 0, -1]
)
@pytest.mark.parametrize("name", ["batch", "epochs", "imgsz"])
def test_no_number_is_rounded(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"'{name}' must be "):
        with_overrides(TrainConfig(), {name: value})


@pytest.mark.parametrize("name", ["epochs", "workers", "seed", "patience", "nbs", "close_mosaic", "max_det"])
def test_neither_are_those_of_settings_files_of_others(name: str, tmp_path: Path) -> None:
    words = {"task": "detect", "mode": "train", "data": "x.yaml", name: 1.6}
    with pytest.raises(UsageError, match=f"'{name}' must be a whole number, not 1.6"):
        with_overrides(TrainConfig(), translated_overrides(words, tmp_path / "args.yaml"))


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["train", "--data", "x.yaml"], "--batch=0.7"),
        (["train", "--data", "x.yaml"], "--epochs=1.6"),
        (["train", "--data", "x.yaml"], "--seed=1.5"),
        (["val", "--weights", "x", "--data", "x"], "--batch=1.5"),
        (["val", "--weights", "x", "--data", "x"], "--workers=0.5"),
        (["predict", "--weights", "x", "x.jpg"], "--max-det=2.5"),
        (["demo", "x"], "--seed=0.5"),
        (["up"], "--ssh-port=22.5"),
    ],
)
def test_flags_are_not_rounded(words: list[str], flag: str, yoloyard: Command) -> None:
    code, _, err = yoloyard(*words, flag)
    name, _, value = flag.partition("=")
    assert (code, err.count("\n")) == (2, 1)
    assert f"Invalid value for --{name.lstrip('-')}: '{value}' is not a whole number" in err


@pytest.mark.parametrize("name", ["data", "model", "weights", "transform", "project"])
def test_paths_know_the_home_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for given, meant in (("~/x y", "/home/ada/x y"), ("~", "/home/ada"), ("a~/b", "a~/b"), ("$HOME/x", "$HOME/x")):
        assert checked_overrides(TrainConfig, {name: given})[name] == meant
    assert checked_overrides(TrainConfig, {name: Path("~/x.py")})[name] == "/home/ada/x.py"
    assert checked_overrides(TrainConfig, {"name": "~x"})["name"] == "~x"


@pytest.mark.parametrize(
    "words",
    [
        ["val", "--weights=~/no.pt", "--data=x"],
        ["predict", "--weights=~/no.pt", "x.jpg"],
        ["data", "check", "~/no.pt"],
        ["import", "~/no.pt"],
        ["info", "~/no.pt"],
        ["train", "--config=~/no.pt"],
        ["train", "--weights=~/no.pt", "--data=x.yaml"],
        ["train", "--resume=~/no.pt"],
        ["doctor", "--folder=~/no.pt"],
    ],
)
def test_so_do_the_paths_of_all_commands(words: list[str], tmp_path: Path, monkeypatch: Any, yoloyard: Command) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = yoloyard(*words)
    assert code > 0
    assert f"{tmp_path}/no.pt" in err
    assert "~" not in err


def test_a_setting_that_is_said_to_be_empty_is_not_said() -> None:
    words = {"weights": "", "cfg": "yolov5n.yaml", "device": ""}
    assert checked_overrides(TrainConfig, words) == {"model": "yolov5n.yaml"}
    with pytest.raises(UsageError, match="data"):
        with_overrides(TrainConfig(), {"data": None})


@pytest.mark.parametrize(
    ("given", "meant"),
    [(True, "ram"), ("True", "ram"), ("true", "ram"), (False, None), ("disk", "disk"), ("RAM", "ram"), (None, None)],
)
def test_cache_as_others_say_it(given: Any, meant: str | None) -> None:
    assert checked_overrides(TrainConfig, {"cache": given})["cache"] == meant


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
def test_a_settings_file_may_have_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    text = ("\ufeff" if encoding.endswith("bom") else "") + "epochs: 3\r\nname: 缺陷\r\n"
    path.write_bytes(text.encode(encoding.removesuffix("-bom")))
    assert read_overrides(path) == {"epochs": 3, "name": "缺陷"}


@pytest.mark.parametrize(
    "content", ["缺陷: 1".encode("gbk"), b"\x00\x01\x02", b"", b"# 3", b"3: 4", "epochs: 3".encode("utf-16-le"), b"- 3"]
)
def test_a_settings_file_that_is_none_is_named_in_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"my\.yaml") as error:
        read_overrides(tmp_path / "my.yaml")
    assert "\n" not in str(error.value)


def test_a_flag_that_is_given_twice_is_refused(yoloyard: Command) -> None:
    for flags in (["--epochs", "3", "--epochs=4"], ["--img", "64", "--imgsz", "96"], ["epochs=3", "--epochs=3"]):
        code, _, err = yoloyard("train", *flags)
        assert code == 2
        assert "specified multiple times" in err


def test_home_is_looked_up_where_it_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert os.path.isabs(checked_overrides(TrainConfig, {"project": "~/x"})["project"])


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("name: 0123", "0123"),
        ("name: 1:30", "1:30"),
        ("name: 3.10", "3.10"),
        ("name: no", "no"),
        ("name: True", "True"),
        ("name: 2024-01-01", "2024-01-01"),
        ("name: null", None),
        ("project: 007", "007"),
        ("classes: [0123, 1:30, no, null, 2]", "0123,1:30,no,null,2"),
        ("classes: 1:30", "1:30"),
        ("device: 0", "0"),
        ("cache: yes", "ram"),
        ("seed: 0123", 123),
        ("epochs: 1_000", 1000),
        ("epochs: 1e3", 1000),
        ("lr0: 1.0e-2", 0.01),
    ],
)
def test_texts_and_numbers_of_a_settings_file_are_as_they_are_written(line: str, meant: Any, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(line)
    assert list(checked_overrides(TrainConfig, read_overrides(tmp_path / "my.yaml")).values()) == [meant]


@pytest.mark.parametrize("line", ["time: 1:30", "lr0: 1:30", "seed: 0x10", "epochs: 1:40", "epochs: 0b11", "lr0: .inf"])
def test_numbers_in_other_than_decimal_digits_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(line)
    with pytest.raises(UsageError, match=f"'{line.split(':')[0]}' must be a"):
        checked_overrides(TrainConfig, read_overrides(tmp_path / "my.yaml"))


def test_a_setting_that_is_said_twice_is_named(tmp_path: Path, yoloyard: Command) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("epochs: 1\nbatch: 4\nepochs: 2\n")
    with pytest.raises(UsageError, match=r"my\.yaml:3: 'epochs' is said already in line 1"):
        read_overrides(path)
    for words in ({"batch": 4, "batch_size": 2}, {"img": 64, "imgsz": 64}, {"hsv-h": 0, "hsv_h": 0}):
        with pytest.raises(UsageError, match=f"is said twice, as '{next(iter(words))}' and as"):
            checked_overrides(TrainConfig, words)
    path.write_text("img_size: 64\ndata: no.yaml\n")
    assert "no.yaml" in yoloyard("train", "--config", path, "--imgsz", "96")[2]  # a flag wins over the file


@pytest.mark.parametrize(
    ("words", "normal"),
    [
        (["train", "--amp", "False"], ["train", "--amp=False"]),
        (["train", "--exist_ok", "true", "--epochs", "3"], ["train", "--exist-ok=true", "--epochs", "3"]),
        (["val", "--save-json", "True"], ["val", "--save-json=True"]),
        (["predict", "a.jpg", "--save-txt", "no"], ["predict", "a.jpg", "--save-txt=no"]),
        (["train", "--name", "True"], ["train", "--name", "True"]),
        (["predict", "--img", "64", "0"], ["predict", "--imgsz", "64", "0"]),
    ],
)
def test_a_switch_may_have_a_value(words: list[str], normal: list[str]) -> None:
    assert normal_arguments(words, app) == normal


@pytest.mark.parametrize("value", ["640.5", "1e-3", "wide", "512,160", "512x", "16x640"])
def test_a_size_is_a_number_or_a_height_and_a_width(value: str, yoloyard: Command) -> None:
    code, _, err = yoloyard("predict", "--weights", "x", "x.jpg", f"--imgsz={value}")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(
        "yoloyard: 'imgsz' must be " + ("at least 32" if value == "16x640" else "a whole number or HEI")
    )


@pytest.mark.parametrize("words", [["--img", "64", "64"], ["--imgsz=640", "480"], ["--img-size", "64", "96"]])
@pytest.mark.parametrize("command", ["train", "predict", "val"])
def test_two_sizes_are_refused(command: str, words: list[str], yoloyard: Command) -> None:
    code, _, err = yoloyard(command, *words)
    assert code == 2
    assert err.endswith(f"HEIGHTxWIDTH as one word: --imgsz {words[-2].rpartition('=')[2]}x{words[-1]}\n")


def test_values_as_others_say_them(yoloyard: Command) -> None:
    words = {"optimizer": "adamw", "save_period": -1, "cfg": "YOLOv5n.yaml"}
    assert checked_overrides(TrainConfig, words) == {"optimizer": "AdamW", "save_period": 0, "model": "YOLOv5n.yaml"}
    for name in ("YOLOv5n.yaml", "models/YOLOV5N.YML", "YOLOv5n"):
        assert plain_name(name) == "yolov5n"
    err = yoloyard("train", "--save-period", "-1", "--amp", "False", "--optimizer", "sgd", "--data", "no.yaml")[2]
    assert "no.yaml" in err
