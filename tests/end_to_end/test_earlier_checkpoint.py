"""A run whose checkpoint an earlier version wrote goes on to the weights that the earlier version itself reached."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from commands import start
from yoloyard.models.weights import read_weights
from yoloyard.training.listeners.results import read_records

KEPT = Path(__file__).parents[1] / "data" / "checkpoint_format_2"  # tests/data/README.md says how it was made
MADE_IN = "/tmp/before"


def test_training_from_a_checkpoint_of_format_2_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which decides the last bit
    folder = Path("runs/run")
    shutil.copytree(KEPT / "run", folder)
    state = folder / "checkpoints" / "last" / "state.json"
    state.write_text(state.read_text().replace(MADE_IN, str(tmp_path)))
    process = start("train", "--resume", folder)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), err
    assert "going on in epoch 2 of 3, after 8 images of it" in out
    expected, _ = read_weights(KEPT / "went_on.safetensors")
    found, _ = read_weights(folder / "weights" / "last.safetensors")
    tolerance = 1e-4  # another processor, torch or NumPy may round differently
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)
    records = read_records(folder)
    for record, line in zip(records, (KEPT / "went_on.jsonl").read_text().splitlines(), strict=True):
        same = {name: value for name, value in json.loads(line).items() if name.startswith(("train", "lr", "gradient"))}
        assert {name: record[name] for name in same} == pytest.approx(same, rel=tolerance, abs=tolerance)
