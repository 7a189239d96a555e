"""Exported files beside the weights: what is compared, what is too far off, and what the user is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_job import NAMES, tiny_job
from yoloyard.common.structures import Detections
from yoloyard.demo.write import write_demo
from yoloyard.export.job import Job
from yoloyard.export.parity import Parity, compare, differences, judge
from yoloyard.export.programs import write_torchscript


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Parity]:
    """A comparison without --data: a true file, and a folder for another machine."""
    job = tiny_job(tmp_path_factory.mktemp("drawn"))
    (job.folder / "triton" / "1").mkdir(parents=True)
    (job.folder / "triton" / "1" / "model.onnx").write_bytes(b"12345")
    return job, compare(job, {"torchscript": write_torchscript(job), "triton": job.folder / "triton"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of 96 pixels with labels."""
    return write_demo(tmp_path_factory.mktemp("data") / "line", seed=3, train=1, val=6, size=96)


def test_a_true_file_has_the_boxes_of_torch(drawn: tuple[Job, Parity]) -> None:
    _, parity = drawn
    row = parity.document["files"][0]
    assert parity.failures == ()
    assert (row["file"], row["precision"], row["torch_alone"], row["file_alone"]) == (
        "best.torchscript",
        "float32",
        0,
        0,
    )
    assert row["matched"] > 100
    assert row["pixels"] < 0.01
    assert row["score"] < 1e-4


def test_what_cannot_run_here_is_listed_as_that(drawn: tuple[Job, Parity]) -> None:
    row = drawn[1].document["files"][1]
    assert (row["target"], row["run"], row["bytes"], row["failures"]) == ("triton", False, 5, [])
    assert "not run here" in drawn[1].page.read_text(encoding="utf-8")


def test_parity_json_says_what_was_compared_and_where(drawn: tuple[Job, Parity]) -> None:
    job, parity = drawn
    document = json.loads((job.folder / "parity.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(parity.document))
    assert (document["images"], document["torch"]) == (8, {})
    facts = document["facts"]
    assert (facts["Data"], facts["Input"]) == ("drawings of the demo", "96 x 96")
    assert "0" * 64 in facts["Weights"]
    assert "torch 2." in facts["Versions"]
    assert "cores" in facts["Machine"]


def test_the_page_says_that_data_would_measure_map_and_needs_no_other_file(drawn: tuple[Job, Parity]) -> None:
    page = drawn[1].page.read_text(encoding="utf-8")
    assert "--data measures mAP" in page
    assert "within tolerance" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_is_not_compared_is_not_within_tolerance(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, outputs="maps")
    page = compare(job, {"torchscript": job.path(".torchscript")}).page.read_text(encoding="utf-8")
    assert "not judged" in page
    assert "within tolerance" not in page


def test_without_data_a_file_of_other_weights_is_too_far_off(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    changed = replace(job, detector=tiny_job(tmp_path).detector)
    with torch.no_grad():
        changed.detector.head.class_branches[0][2].bias += 0.02  # type: ignore[index, union-attr]
    file = write_torchscript(changed)

    parity = compare(job, {"torchscript": file})

    [line] = parity.failures
    assert line.startswith("best.torchscript: boxes differ from torch's by up to ")
    assert line.endswith("rounding explains 0.5 pixels and 0.001: don't use this file")
    assert "too far off" in parity.page.read_text(encoding="utf-8")
    assert file.exists()


def test_where_the_weights_find_nothing_the_file_is_not_judged_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = tiny_job(tmp_path)
    with torch.no_grad():
        for branch in job.detector.head.class_branches:  # type: ignore[union-attr]
            branch[-1].bias.fill_(-20)
    with caplog.at_level("INFO"):
        parity = compare(job, {"torchscript": write_torchscript(job)})
    assert (parity.document["boxes"], parity.document["files"][0]["result"]) == (0, "not judged")
    assert "not judged: the weights find no box in drawings of the demo; --data data.yaml" in caplog.text
    assert "within tolerance" not in parity.page.read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(96, 96), None], ids=["static", "dynamic"])
def test_with_data_map_is_measured_by_class_and_size(
    shape: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    job = tiny_job(tmp_path, shape=shape, data=str(data))
    parity = compare(job, {"torchscript": write_torchscript(job)})
    assert parity.failures == ()
    expected, [row] = parity.document["torch"], parity.document["files"]
    assert parity.document["images"] == 6
    assert row["figures"]["map50_95"] == pytest.approx(expected["map50_95"], abs=1e-3)
    assert [each["name"] for each in expected["classes"]] == list(NAMES)
    assert expected.keys() >= {"map50_95", "map_small", "map_medium", "map_large"}


def test_boxes_are_matched_by_class_and_overlap() -> None:
    def boxes(*rows: tuple[float, float, int]) -> dict[int, Detections]:
        left, scores, labels = zip(*rows, strict=True)
        corners = torch.tensor([[x, 0.0, x + 10, 10.0] for x in left])
        return {0: Detections(corners, torch.tensor(scores), torch.tensor(labels))}

    torch_boxes = boxes((0, 0.9, 0), (50, 0.8, 1), (100, 0.7, 0), (200, 0.051, 0), (300, 0.01, 0))
    file_boxes = boxes((1, 0.8, 0), (100.5, 0.7, 0), (50, 0.6, 0), (200, 0.049, 0), (400, 0.02, 0))
    found = differences(torch_boxes, file_boxes)
    # a box that falls below the lowest score is compared, and weaker ones that are in one alone are not counted
    assert (found["matched"], found["torch_alone"], found["file_alone"]) == (3, 1, 1)
    assert found["pixels"] == pytest.approx(1)
    assert found["score"] == pytest.approx(0.1)


def figures(overall: float, *classes: tuple[str, int, float]) -> dict[str, Any]:
    rows = [{"name": name, "boxes": boxes, "map50_95": value} for name, boxes, value in classes]
    return {"map50_95": overall, "classes": rows}


EXPECTED = figures(0.5, ("scratch", 20, 0.5), ("dent", 19, 0.5))


@pytest.mark.parametrize(
    ("precision", "overall", "scratch", "dent", "said"),
    [
        ("float32", 0.4991, 0.4, 0.6, []),
        ("float32", 0.5011, 0.5, 0.5, ["all classes", ": 0.5000 in torch, 0.5011 here"]),
        ("float16", 0.4989, 0.5, 0.5, ["all classes", ": 0.5000 in torch, 0.4989 here"]),
        ("int8", 0.491, 0.471, 0.1, []),
        ("int8", 0.6, 0.7, 0.7, []),
        ("int8", 0.489, 0.5, 0.5, ["all classes", ": 0.5000 in torch, 0.4890 here"]),
        ("int8", 0.5, 0.469, 0.5, ["class scratch (20 boxes)", ": 0.5000 in torch, 0.4690 here"]),
    ],
)
def test_a_file_is_judged_by_the_tolerance_of_its_precision(
    precision: str, overall: float, scratch: float, dent: float, said: list[str], tmp_path: Path
) -> None:
    found = figures(overall, ("scratch", 20, scratch), ("dent", 19, dent))
    lines = judge({"precision": precision, "figures": found}, EXPECTED, tiny_job(tmp_path))
    assert len(lines) == bool(said)
    assert all(part in line for line in lines for part in said)


def test_the_class_that_lost_most_is_named(tmp_path: Path) -> None:
    found = figures(0.49, ("scratch", 20, 0.49), ("dent", 19, 0.4))
    [line] = judge({"precision": "float32", "figures": found}, EXPECTED, tiny_job(tmp_path))
    assert "all classes (most apart: dent, 0.5000 and 0.4000): 0.5000 in torch, 0.4900 here, more than 0.001" in line


@pytest.mark.parametrize(
    ("keep_float", "advice"),
    [
        (None, "--keep-float head leaves more in float"),
        ("head.class_branches.0", "--keep-float head leaves more in float"),
        ("head.class_branches.0, head", "leave out --int8"),
    ],
)
def test_int8_that_loses_too_much_is_told_what_to_leave_in_float(
    keep_float: str | None, advice: str, tmp_path: Path
) -> None:
    job = tiny_job(tmp_path, keep_float=keep_float)
    [line] = judge(
        {"precision": "int8", "figures": figures(0.4, ("dent", 1, 0.4))}, figures(0.5, ("dent", 1, 0.5)), job
    )
    assert line.endswith(f"more than 0.01 apart; {advice}")
