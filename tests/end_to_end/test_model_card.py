"""The page beside the best weights, and what licences of starting weights mean."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from commands import Command
from yoloyard.common.lineage import meaning
from yoloyard.config.settings import TrainConfig
from yoloyard.data.index.index import Index
from yoloyard.evaluation.metrics.coco import Metrics
from yoloyard.models.weights import read_weights
from yoloyard.training.listeners.card import write_card


def test_a_run_leaves_a_card_beside_its_best_weights(run_folder: Path, data: Path) -> None:
    card = (run_folder / "weights" / "best.md").read_text()
    metadata = read_weights(run_folder / "weights" / "best.safetensors")[1]
    assert card.startswith("# tiny\\_network.py:Tiny, trained on line/data.yaml\n")
    figures = metadata["metrics"]
    assert f"| on (used) | {figures['map50_95']:.3f} | {figures['map50']:.3f} |" in card
    assert f"Of epoch {metadata['epoch']}, on the validation images" in card
    found = re.search(r"- Training: \d+ images, \d+ boxes, 5 classes\n- Validation: (\d+) images", card)
    assert found is not None
    assert int(found[1]) == len(list((data.parent / "images" / "val").iterdir()))
    assert f"They are only {found[1]}: such figures change by chance" in card
    assert "- optimizer: AdamW, lr0 0.002" in card
    assert "trained from random weights: no licence of other weights holds for it" in card
    assert "keep it with the weights" in card
    assert "/" not in card.replace("line/data.yaml", "")
    assert not (run_folder / "weights" / "last.md").exists()


def test_fine_tuning_says_what_the_licence_of_the_start_means(run_folder: Path, data: Path, yoloyard: Command) -> None:
    code, out, err = yoloyard(
        "train", "--weights", run_folder / "weights" / "best.safetensors", "--data", data, "--epochs", 1, "--imgsz", 64,
        "--workers", 0, "--name", "tuned", "--no-tensorboard"
    )  # fmt: skip
    assert code == 0, err
    assert "trained from random weights: no licence of other weights holds for it" in " ".join((out + err).split())
    card = Path("runs/tuned/weights/best.md").read_text()
    assert "- start: best.safetensors" in card


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (
            ("AGPL-3.0",),
            "weights under AGPL-3.0: a product that contains the result must be offered under AGPL-3.0, or",
        ),
        (
            ("MIT", "AGPL-3.0"),
            "weights under MIT and AGPL-3.0: a product that contains the result must be offered under A",
        ),
        (("MIT",), "weights under MIT: the result may be in any product; keep"),
        (("Apache-2.0", "BSD-3-Clause"), "weights under Apache-2.0 and BSD-3-Clause: the result may be in any product"),
        (("CC-BY-NC-4.0",), "weights under CC-BY-NC-4.0: read what it asks for"),
        (("MIT", "Anna's"), "weights under MIT and Anna's: read what it asks for"),
        ((None,), "it came from weights whose licence is not recorded"),
    ],
)
def test_a_licence_is_told_in_plain_words(licences: tuple[str | None, ...], said: str) -> None:
    assert meaning([{"what": "trained", "file": "a.pt", "licence": each} for each in licences]).startswith(said)


def test_a_card_shows_both_paths_and_no_name_acts_as_markup(tmp_path: Path) -> None:
    names = ("<script>|`x` @b http://c", "never in training", "never in validation")
    empty = np.zeros(0)

    def index(labels: list[int]) -> Index:
        boxes = np.zeros((len(labels), 4), np.float32)
        counts: dict[str, Any] = {"sizes": np.zeros((150, 2), np.int32), "labels": np.array(labels), "boxes": boxes}
        rest: Any = {"paths": None, "offsets": empty, "problems": (), "source_ids": empty, "category_ids": empty}
        return Index(names=names, ignore=np.zeros(len(labels), bool), file_names=None, **counts, **rest)  # type: ignore[arg-type]

    history = [{"what": "trained", "file": "a.pt", "licence": "AGPL-3.0"}]
    config = TrainConfig(data="/home/anna/<b>set/data.yaml", weights="s3://anna/secret/a.pt", imgsz=96)
    spec = SimpleNamespace(config=config, names=names, model_name="yolo26n", model_digest=None, history=history)
    setup: Any = SimpleNamespace(config=config, spec=spec, train_index=index([0, 0, 2]), val_index=index([0, 1]))

    def metrics(suppression: str, value: float) -> Metrics:
        classes = [
            SimpleNamespace(name=name, boxes=n, map50_95=value, map50=value)
            for name, n in zip(names, (1, 1, 0), strict=True)
        ]
        found: Any = SimpleNamespace(suppression=suppression, map50_95=value, map50=value, classes=classes)
        return found

    write_card(tmp_path / "best.md", setup, 3, metrics("on", 0.5), metrics("off", 0.25))
    card = (tmp_path / "best.md").read_text()
    assert "| on (used) | 0.500 | 0.500 |\n| off | 0.250 | 0.250 |" in card
    assert "| \\<script\\>\\|\\`x\\` \\@b http\\://c | 2 | 1 | 0.500 | 0.500 |" in card
    assert "| never in validation | 1 | 0 | not known | not known |" in card
    assert "Classes without a box in training, which are never found: 1." in card
    assert "weights under AGPL-3.0: a product that contains" in card
    assert "trained on \\<b\\>set/data.yaml" in card
    assert not {"anna", "secret"} & set(re.findall(r"\w+", card))
    assert "They are only" not in card  # 150 images
