"""`yoloyard plan`: from settings, or a job file, to a table or a document with a recommendation."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import TINY_NETWORK
from made_offers import write_catalog
from yoloyard.cli.main import main
from yoloyard.config.settings import TrainConfig
from yoloyard.demo.write import write_demo
from yoloyard.planning import plan
from yoloyard.planning.trace import StepTrace, trace_steps

TRAINING = ["--model", TINY_NETWORK, "--imgsz", "64", "--epochs", "100"]
CATALOG = [
    "g4dn.xlarge,T4,1.0,4.0,16.0,,0.526,0.16,us-east-1,us-east-1a",
    "g6.xlarge,L4,1.0,4.0,16.0,,0.8048,0.31,us-east-1,us-east-1a",
    "free.xlarge,L4,1.0,4.0,16.0,,0.0,,us-west-2,us-west-2a",
    "p5.48xlarge,H100,8.0,192.0,2048.0,,55.04,20.0,us-east-1,us-east-1a",
]


TRACES: dict[bool, list[StepTrace]] = {}


def traced_once(
    config: TrainConfig, num_classes: int, precisions: Any, recomputed: Any, on_cpu: bool = False, **images: int
) -> list[StepTrace]:
    """The traces of the network that all tests here plan for, whatever its classes: tracing takes a second or two."""
    if on_cpu not in TRACES:
        TRACES[on_cpu] = trace_steps(config, num_classes, precisions, recomputed, on_cpu, **images)
    return TRACES[on_cpu]


@pytest.fixture(autouse=True)
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catalogs that all tests here see, and no settings of the user."""
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path / "sky"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(plan, "trace_steps", traced_once)
    write_catalog(tmp_path / "sky" / ".sky" / "catalogs" / "v8", "aws", *CATALOG)


def planned(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The document of a plan."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert ended.value.code in (0, None), said.err
    document: dict[str, Any] = json.loads(said.out)
    return document


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line of a plan that is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, words)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_plan_says_what_a_step_takes_and_how_long_each_gpu_does_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *TRAINING, "--images", 50_000)
    assert found["images"] == {"train": 50_000, "val": 10_000, "kind": "given"}
    assert found["step"]["kind"] == "traced"
    assert found["step"]["parameters"] > 0
    peaks = {(each["precision"], each["recomputed"], each["images"]): each["bytes"] for each in found["memory"]}
    assert peaks["float32", False, 64] > peaks["amp", False, 64] > peaks["amp", False, 32]
    gpus = {each["gpu"]: each for each in found["gpus"]}
    assert found["here"][-1]["hours"] > gpus["T4"]["hours"] >= gpus["B300"]["hours"] > 0
    assert gpus["T4"]["largest_micro_batch"] < gpus["B300"]["largest_micro_batch"]
    assert {each["kind"] for each in found["gpus"]} == {"modelled"}
    assert len(found["here"]) >= 1
    page = (
        (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8").partition("## `yoloyard plan`")[2]
    )
    example = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert found.keys() == example.keys()
    for part in ("step", "settings", "images", "recommendation"):
        assert found[part].keys() == example[part].keys()
    for rows in ("memory", "gpus", "here", "offers"):
        assert found[rows][0].keys() == example[rows][0].keys()


def test_an_offer_costs_its_price_for_the_hours_and_zero_is_never_the_cheapest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    offers = planned(capsys, *TRAINING, "--images", 50_000)["offers"]
    costs = [each["cost"] for each in offers if each["cost"] is not None]
    assert costs == sorted(costs)
    assert all(each["cost"] == pytest.approx(each["price"] * each["hours"]) for each in offers if each["cost"])
    assert (offers[-1]["instance"], offers[-1]["cost"]) == ("free.xlarge", None)
    assert "price is zero" in offers[-1]["doubts"]


def test_a_job_file_says_training_resources_and_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    train = f"{{model: '{TINY_NETWORK}', imgsz: 64, epochs: 10, data: data.yaml}}"
    (tmp_path / "data.yaml").write_text("train: there/train\nval: there/val\nnames: [scratch, dent]\n")
    resources = "{gpu: H100, count: 8, spot: true, cloud: aws}"
    job.write_text(f"train: {train}\nresources: {resources}\nlimits: {{max_cost: 1000, max_hours: 0.0001}}\n")
    found = planned(capsys, job, "--images", 10_000_000, "--epochs", 20)
    assert found["settings"]["epochs"] == 20
    assert [(each["instance"], each["spot"]) for each in found["offers"]] == [("p5.48xlarge", True)]
    assert found["recommendation"]["verdict"] == "deadline"
    assert found["recommendation"]["offer"]["instance"] == "p5.48xlarge"


def test_of_a_job_that_names_its_gpu_no_other_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: there/train\nval: there/val\nnames: [scratch, dent]\n")
    train = f"{{model: '{TINY_NETWORK}', imgsz: 64, data: data.yaml}}"
    (tmp_path / "job.yaml").write_text(f"train: {train}\nresources: {{gpu: A40, nodes: 2}}\n")
    with pytest.raises(SystemExit):
        main(["plan", str(tmp_path / "job.yaml"), "--images", "5000"])
    text = capsys.readouterr().out  # the catalog has no offer of an A40
    assert " A40 " in text
    assert " B300 " not in text


def test_the_number_of_images_is_counted_where_the_data_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_demo(tmp_path / "demo", train=6, val=2)
    found = planned(capsys, *TRAINING, "--data", tmp_path / "demo" / "data.yaml")
    assert found["images"] == {"train": 6, "val": 2, "kind": "counted"}
    assert found["recommendation"]["verdict"] == "own"


def test_tiles_are_counted_where_the_data_is_and_else_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write_demo(tmp_path / "demo", train=6, val=2, size=96)
    found = planned(capsys, *TRAINING, "--data", data, "--tile", 48)
    assert found["images"] == {"train": 6 * 9, "val": 2 * 9, "kind": "counted"}
    given = planned(capsys, *TRAINING, "--images", 100, "--tile", 48)
    assert given["images"]["train"] == 100
    assert [note for note in given["notes"] if "--images is the number of tiles in an epoch" in note]


def test_a_plan_that_people_read_fits_into_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *TRAINING, "--images", "50000", "--all"])
    lines = capsys.readouterr().out.splitlines()
    first, last = (next(at for at, line in enumerate(lines) if line.startswith(mark)) for mark in ("GB of", "(1)"))
    assert 60 < max(map(len, lines[first:last])) <= 100
    text = "\n".join(lines)
    for part in ("50,000 training and 10,000 validation images (given)", "amp, recomputed", "$", "price is zero"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which data: --data FILE; or how many training images there will be: --images N"),
        (["--data", "missing.yaml"], "missing.yaml"),
        (["--images", "100", "--deadline", "soon"], "--deadline must be a time such as 8h, 90m or 2d, not 'soon'"),
        (["--images", "100", "--max-cost", "0"], "--max-cost"),
        (["--images", "100", "--prices", "missing.csv"], "cannot read missing.csv"),
        (["--images", "100", "--epoch", "3"], "epochs"),
        (["--calibrate", "run"], "--calibrate compares a run with its own plan: leave the job file and other settings"),
        (["job.yaml"], "there is no file job.yaml"),
    ],
)
def test_wrong_usage_is_a_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "--model", TINY_NETWORK, *words)
    assert message in line
    assert len(line.splitlines()) == 1
