"""`yoloyard weights`: the table, the question before anything is fetched, and the file that the other commands use."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from commands import Command
from foreign import published_network
from weights_server import Published, publishing
from yoloyard.commands import info
from yoloyard.config.known_weights import known_files
from yoloyard.config.settings import TrainConfig
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.models import registry
from yoloyard.models.profile import Profile
from yoloyard.training.setup.starting_point import starting_point


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def server(data: Path, foreign_classes: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """A mirror that publishes a yolov5n with the classes of the tiny set."""
    network = published_network(registry.build("yolov5n", num_classes=len(read_data_yaml(data).names)))
    network.names = list(read_data_yaml(data).names)  # type: ignore[assignment]
    file = io.BytesIO()
    torch.save({"model": network.half(), "ema": None}, file)
    monkeypatch.setenv("NO_PROXY", "localhost")
    with publishing(file.getvalue()) as published:
        monkeypatch.setenv("YOLOYARD_MIRROR", published.address)
        yield published


def test_the_table_fits_100_columns_and_has_every_file(yoloyard: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    code, out, err = yoloyard("weights")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert max(map(len, out.splitlines())) <= 100
    for known in known_files().values():
        row = next(line for line in lines if line[:1] == [known.model])
        assert row[1:4] == [known.file, known.publisher, known.code]
    assert "annotations CC BY 4.0, images under Flickr's terms of use" in out
    code, out, _ = yoloyard("weights", "--licence", "permissive")
    assert "v9-s.pt" in out
    assert "AGPL" not in out


def test_the_table_as_json(server: Published, yoloyard: Command) -> None:
    assert yoloyard("weights", "get", "yolov5n", "--yes")[0] == 0
    code, out, err = yoloyard("weights", "--json")
    rows = {row["model"]: row for row in json.loads(out)["files"]}
    assert (code, err, rows.keys()) == (0, "", known_files().keys())
    assert rows["yolov9c"] | {"map50_95": 53.0, "licence": "MIT", "weights": None, "cached": None} == rows["yolov9c"]
    assert rows["yolov5n"]["cached"] == str(Path("cache/published/yolov5n.pt").absolute())
    assert [
        row["model"] for row in json.loads(yoloyard("weights", "--licence", "permissive", "--json")[1])["files"]
    ] == [name for name, row in rows.items() if row["permissive"]]


@pytest.mark.parametrize(("answer", "is_fetched"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_it_says_the_terms_and_asks(
    answer: str, is_fetched: bool, server: Published, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    code, out, err = yoloyard("weights", "get", "yolov5n")
    assert (code, err) == (0, "")
    assert f"{server.address}/ultralytics/yolov5/releases/download/v7.0/yolov5n.pt" in out
    assert "published by Ultralytics; code AGPL-3.0, weights AGPL-3.0; trained on COCO: annotations CC BY" in out
    assert "fetch it under these terms? [y/N]" in out
    assert len(server.asked) == is_fetched
    assert ("yolov5n is there: --weights yolov5n uses it" in out) == is_fetched
    assert ("nothing was fetched" in out) != is_fetched


def test_where_nobody_can_be_asked_yes_must_be_said(server: Published, yoloyard: Command) -> None:
    code, _, err = yoloyard("weights", "get", "yolov5n")
    assert (code, err) == (2, "yoloyard: nobody can be asked here: --yes accepts these terms and fetches the file\n")
    assert server.asked == []
    code, _, err = yoloyard("weights", "get", "yolo9s", "--yes")
    assert code == 2
    assert "no published file is known as 'yolo9s': did you mean yolov9s? `yoloyard weights` lists them" in err
    server.content = b"<html>"
    code, _, err = yoloyard("weights", "get", "yolov5n", "--yes")
    assert (code, err.count("\n"), "is no weights file" in err) == (1, 1, True)


def test_the_other_commands_find_the_file_by_its_name_and_fetch_nothing(
    server: Published, data: Path, yoloyard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next((data.parent / "images/val").iterdir())
    assert yoloyard("predict", "--weights", "yolov5n", image)[0] == 1
    assert server.asked == []
    assert yoloyard("weights", "get", "yolov5n", "--yes")[0] == 0
    code, out, err = yoloyard("weights", "get", "yolov5n.pt")
    assert (code, err, "yolov5n is there already: " in out, len(server.asked)) == (0, "", True, 1)
    using = f"yolov5n: using {Path('cache/published/yolov5n.pt').absolute()}, published by Ultralytics under AGPL-3.0"
    for command in (["predict", image, "--imgsz", 32], ["licence"]):
        code, out, err = yoloyard(*command, *([] if command == ["licence"] else ["--weights"]), "yolov5n")
        assert (code, err, using in out) == (0, "", True)
    monkeypatch.setattr(info, "profile", lambda *_, **__: Profile((), 0, 0, 0, (8, 16, 32), 640))  # which takes seconds
    assert "licence: AGPL-3.0" in yoloyard("info", "yolov5n.pt")[1]
    assert "licence" not in yoloyard("info", "yolov5n")[1]  # the model, as it always was
    config = TrainConfig(weights="yolov5n", data=str(data))
    history = starting_point({"weights": config.weights}).history(config)
    assert [(step["what"], step["file"], step["licence"]) for step in history] == [
        ("imported", "yolov5n.pt", "AGPL-3.0"),
        ("trained", "yolov5n.pt", "AGPL-3.0"),
    ]
    assert len(server.asked) == 1
