"""An engine of TensorRT that arrives on another machine is refused early, by a line that says why."""

import json
from pathlib import Path

import pytest

import yoloyard
from yoloyard.common.errors import UserError
from yoloyard.runtimes import engine

BUILT = {
    "tensorrt": "10.3.0.26",
    "compute_capability": "8.7",
    "gpu": "Orin",
    "driver": "540.4.0",
}


HERE = "TensorRT {tensorrt}, {gpu} of compute capability {compute_capability}, driver {driver}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "best.engine").write_bytes(b"an engine")
    (tmp_path / "best.engine.json").write_text(json.dumps(BUILT), encoding="utf-8")
    return tmp_path / "best.engine"


@pytest.mark.parametrize(
    "changed",
    [
        {"tensorrt": "11.4.0.106"},
        {"tensorrt": "10.3.0.30"},
        {"compute_capability": "9.0", "gpu": "H200"},
        {"gpu": "Orin Nano"},
        {"driver": "540.3.9"},
        {"driver": "99.1"},
    ],
)
def test_a_foreign_engine_is_refused_by_both_places_and_what_to_do(
    changed: dict[str, str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "facts_here", lambda: BUILT | changed)
    with pytest.raises(UserError) as error:
        yoloyard.load(path)
    places = (
        f"{path} was built for {HERE.format(**BUILT)}; here is {HERE.format(**BUILT | changed)}: take the .onnx, or"
    )
    assert str(error.value) == f"{places} build it where it runs: yoloyard export WEIGHTS --to tensorrt"


@pytest.mark.parametrize("driver", ["540.4.0", "540.10.0", "600.1", None])
def test_an_engine_that_fits_is_told_what_runs_it(
    driver: str | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "facts_here", lambda: BUILT | {"driver": driver})
    with pytest.raises(UserError, match="fits this machine, but yoloyard runs no engines"):
        yoloyard.load(path)


def test_a_machine_without_tensorrt_says_for_which_the_engine_is(path: Path) -> None:
    with pytest.raises(UserError, match=r"built for TensorRT 10\.3\.0\.26, Orin .*; here is no TensorRT, or no GPU"):
        yoloyard.load(path)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff", b"{}"])
def test_an_engine_whose_sidecar_is_missing_or_damaged_is_refused(content: bytes | None, path: Path) -> None:
    sidecar = path.with_suffix(".engine.json")
    sidecar.unlink() if content is None else sidecar.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.engine\.json can't be read, so nothing says where .*best\.engine runs"):
        yoloyard.load(path)
