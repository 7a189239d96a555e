"""The commands in their groups, their JSON, and the habits of other projects' users."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cyclopts
import pytest

from commands import Command
from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.main import GROUPS, app
from yoloyard.common.errors import UsageError
from yoloyard.data.formats.table import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
EXAMPLES = {
    command: json.loads(example)
    for command, example in re.findall(
        r"^## `yoloyard (.+?)`$.*?^```json\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
}


def check_form(document: Any, example: Any, where: str = "document") -> None:
    """The document has the names and types of the page's example, or null; `{}` is an object of any names."""
    if document is None:
        return
    if isinstance(example, dict):
        assert isinstance(document, dict), where
        if example:
            assert document.keys() == example.keys(), where
            for name, value in example.items():
                check_form(document[name], value, f"{where}.{name}")
    elif isinstance(example, list):
        assert isinstance(document, list), where
        for value in document:
            check_form(value, example[0], f"{where}[]")
    else:
        numbers = (int, float)
        assert type(document) is type(example) or (type(document) in numbers and type(example) in numbers), where


def flags_of(command: cyclopts.App) -> set[str]:
    return {name for argument in command.assemble_argument_collection() for name in argument.names}


def all_commands() -> dict[str, cyclopts.App]:
    """Every command that does something, by its words."""
    found = {}
    for name in [name for commands in GROUPS.values() for name in commands]:
        found[name] = app[name]
        found |= {f"{name} {each}": app[name][each] for each in app[name] if not each.startswith("-")}
    return {words: command for words, command in found.items() if command.default_command}


def test_help_has_the_groups_in_order_with_a_short_sentence_a_command(yoloyard: Command) -> None:
    code, out, _ = yoloyard("--help")
    assert code == 0
    assert list(GROUPS) == ["Train", "Jobs", "Data", "Weights", "Production", "Machines"]
    found = re.findall(r"─ (\w+) ─|^│ ([a-z]\S*) +(.+?) *│$", out, re.MULTILINE)
    titles = [title for title, _, _ in found if title]
    assert titles == [title for title, commands in GROUPS.items() if commands] + ["Options"]
    lines = {name: sentence for _, name, sentence in found if name}
    assert list(lines) == [name for commands in GROUPS.values() for name in commands]  # none takes a second line
    for name, sentence in lines.items():
        assert re.fullmatch(r"[A-Z][a-z]+ .+[^.]\.", sentence), name
        assert ". " not in sentence, name


def test_the_page_describes_each_command_that_takes_json() -> None:
    takes_json = {words for words, command in all_commands().items() if "--json" in flags_of(command)}
    described = {" ".join(re.findall(r"(?<= )[a-z]+", f" {command}")) for command in EXAMPLES}
    assert takes_json == described
    assert len(described) == 18


@pytest.mark.parametrize(
    "command", ["val", "predict", "info MODEL", "info", "weights", "data check", "data convert", "doctor diff"]
)
def test_json_has_the_form_of_its_page(command: str, run_folder: Path, data: Path, yoloyard: Command) -> None:
    best = run_folder / "weights" / "best.safetensors"
    (data.parent / "labels/train/0004.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    arguments: dict[str, list[object]] = {
        "val": ["val", f"model={best}", f"data={data}", "json=true"],
        "predict": ["predict", "--weights", best, data.parent / "images/val", "--json"],
        "info MODEL": ["info", best, "--json"],
        "info": ["info", "--json"],
        "weights": ["weights", "--json"],
        "data check": ["data", "check", data, "--json"],
        "data convert": ["data", "convert", data, "out=converted", "to=voc", "json=true"],
        "doctor diff": ["doctor", "diff", run_folder, "other", "--json"],
    }
    if command == "doctor diff":
        facts = json.loads((run_folder / "environment.json").read_text()) | {"precision": "float8", "accelerator": None}
        Path("other").mkdir()
        Path("other/environment.json").write_text(json.dumps(facts))
    code, out, err = yoloyard(*arguments[command])
    assert code == (command in ("data check", "doctor diff")), err  # it has an error; they differ
    document = json.loads(out)
    check_form(document, EXAMPLES[command])
    if command == "val":
        assert document["figures"] == json.loads((Path(document["report"]).parent / "metrics.json").read_text())
        assert "computing in" in err or not err
    if command == "predict":
        assert (document["images"], err.count("0000.jpg"), "shown: " in err) == (6, 1, True)
    if command == "data check":
        assert (document["errors"], len(document["problems"])) == (1, 1)
        assert document["problems"][0]["where"].endswith("labels/train/0004.txt:1")
    if command == "data convert":
        assert [row["split"] for row in document["splits"]] == ["train", "val"]
        for row in document["splits"]:
            assert f"{row['split']}: {row['images']} images, {row['boxes']} boxes" in err
            written = len(list(Path("converted/Annotations", row["split"]).iterdir()))
            skipped = row["split"] == "train"  # the image whose label is wrong
            assert (row["images"], row["skipped"], row["boxes_left_out"]) == (written, skipped, 0)
    if command == "doctor diff":
        assert document["decides"]
        assert {
            "group": "arithmetic",
            "decides": True,
            "name": "precision",
            "first": "float32",
            "second": "float8",
        } in (document["differences"])


def test_the_example_of_info_is_what_the_command_says(yoloyard: Command) -> None:
    document, example = json.loads(yoloyard("info", "yolo11n", "--json")[1]), EXAMPLES["info MODEL"]
    assert {**document, "blocks": document["blocks"][:1]} == example


def test_the_help_of_convert_names_the_formats(yoloyard: Command) -> None:
    assert all(name in yoloyard("data", "convert", "--help")[1].split("format to write")[1] for name in FORMATS)


@pytest.mark.parametrize("command", ["runs", "runs show NAME", "runs compare NAME NAME"])
def test_json_about_runs_has_the_form_of_its_page(command: str, run_folder: Path, yoloyard: Command) -> None:
    shutil.copytree(run_folder, "runs/line-2")
    metrics = run_folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 1, "alert": "starved"}\n{}\n')
    since = "2026-01-01T00:00:00Z"
    (run_folder / "backup.json").write_text(
        f'{{"address": "file:///x", "epoch": 2, "waiting_since": "{since}", "error": null}}'
    )
    names = iter(("line", "line-2"))
    words = [next(names) if word == "NAME" else word for word in command.split()]
    code, out, err = yoloyard(*words, "--json")
    assert (code, err) == (0, "warning: runs/line: metrics.jsonl:4 is no line of figures\n")
    check_form(json.loads(out), EXAMPLES[command])


@pytest.mark.parametrize("command", ["doctor", "image list", "image show TAG"])
def test_json_about_the_host_has_the_form_of_its_page(command: str, yoloyard: Command) -> None:
    words = [word.replace("TAG", "cpu") for word in command.split()]
    words += ["--quick"] if command == "doctor" else []
    _, out, err = yoloyard(*words, "--json")
    assert err == ""
    check_form(json.loads(out), EXAMPLES[command])


@pytest.mark.parametrize(
    ("argv", "normal"),
    [
        ("detect train data=x.yaml", "train --data=x.yaml"),
        ("task=detect mode=train data=x.yaml", "train --data=x.yaml"),
        ("mode=val task=detect model=x.pt", "val --model=x.pt"),
        ("train task=detect mode=train epochs=3", "train --epochs=3"),
        ("detect predict model=x.pt source=a.jpg", "predict --model=x.pt --source=a.jpg"),
        ("detect", ""),
        ("mode=export", "export"),
        ("shell yolo task=segment mode=train", "shell yolo task=segment mode=train"),
        ("val --json true", "val --json=true"),
        ("data convert x.yaml out=new to=voc", "data convert x.yaml --out=new --to=voc"),
        ("doctor quick=true folder=x", "doctor --quick=true --folder=x"),
        ("demo folder=x", "demo --folder=x"),
        ("image show tag=cpu", "image show --tag=cpu"),
        ("up on=ssh://me@host ssh_port=2223", "up --on=ssh://me@host --ssh-port=2223"),
        ("up portt=3", "up --portt=3"),
        ("data check year=2024/data.yaml", "data check year=2024/data.yaml"),
        ("predict year=2024/x.jpg classes=0", "predict year=2024/x.jpg --classes=0"),
    ],
)
def test_a_leading_task_is_passed_over(argv: str, normal: str) -> None:
    assert normal_arguments(argv.split(), app) == normal.split()


@pytest.mark.parametrize(
    "argv", ["train data demo/data.yaml", "train epochs", "val best.pt", "info a b", "mode=val train", "doctor foo"]
)
def test_words_that_nothing_takes_are_refused_with_how_a_setting_is_written(argv: str, yoloyard: Command) -> None:
    code, _, err = yoloyard(*argv.split())
    assert (code, err.count("\n")) == (2, 1)
    command = argv.removeprefix("mode=").split()[0]
    assert re.match(r"yoloyard: not understood: .+; a setting is written --name value or name=value", err)
    assert f"(yoloyard {command} --help lists" in err


@pytest.mark.parametrize("task", ["segment", "classify", "pose", "obb"])
@pytest.mark.parametrize("argv", ["{} train data=x.yaml", "task={} mode=train", "train task={}"])
def test_other_tasks_are_refused(task: str, argv: str) -> None:
    with pytest.raises(UsageError, match=f"no task '{task}': it trains detectors only"):
        normal_arguments(argv.format(task).split(), app)


@pytest.mark.parametrize("command", [["val", "--data", "x.yaml"], ["predict", "x.jpg"], ["info"]])
@pytest.mark.parametrize("spelling", ["model={}", "--model={}", "--weights={}", "weights={}"])
def test_model_and_weights_name_the_weights_file(command: list[str], spelling: str, yoloyard: Command) -> None:
    code, _, err = yoloyard(*command, spelling.format("no.safetensors"))
    assert (code, err) == (1, "yoloyard: cannot read the weights no.safetensors: No such file or directory.\n")
    code, _, err = yoloyard(*command, "model=a.pt", "--weights=b.pt")
    assert (code, "specified multiple times" in err) == (2, True)


@pytest.mark.parametrize(
    ("command", "file", "name", "licence"),
    [
        ("train data=line/data.yaml", "yolo11n.pt", "yolo11n", "AGPL-3.0"),
        ("val data=line/data.yaml", "weights/yolo12s.pt", "yolo12s", "AGPL-3.0"),
        ("predict source=x.jpg", "yolov9c", "yolov9c", "MIT"),
        ("info", "yolov5m6.pt", "yolov5m6", "AGPL-3.0"),
    ],
)
@pytest.mark.usefixtures("data")
def test_published_weights_that_are_missing_are_explained(
    command: str, file: str, name: str, licence: str, yoloyard: Command
) -> None:
    code, _, err = yoloyard(*command.split(), f"model={file}")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{file}: No such file" in err
    assert f"`yoloyard weights get {name}` fetches " in err
    assert f"under {licence}; nothing else downloads it" in err
    assert f"`yoloyard train --model {name}` starts from random weights" in err
    for other in ("mine.pt", "yolov5nu.pt"):
        assert "yoloyard weights" not in yoloyard(*command.split(), f"model={other}")[2]


def test_the_same_setting_has_one_name_in_all_commands() -> None:
    flags = {words: flags_of(command) for words, command in all_commands().items()}
    shared = {"--device", "--imgsz", "--conf", "--iou", "--max-det", "--weights", "--model", "--project", "--name"}
    assert all(shared <= flags[command] for command in ("train", "val", "predict"))
    assert {"--data", "--batch", "--workers", "--amp"} <= flags["train"] & flags["val"]
    assert {"--data", "--project", "--name"} <= flags["data check"]
    assert {"--model", "--weights"} <= flags["info"]
    assert "--data" in flags["data convert"]
