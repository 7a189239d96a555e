"""An engine of TensorRT that arrives on another machine is refused early, by a line that says why."""

import json
from pathlib import Path
from typing import Any

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


def test_an_engine_runs_where_it_was_built() -> None:
    engine.check_engine(BUILT, BUILT)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tensorrt": "11.4.0.106"}, "needs TensorRT 10.3.0.26, and here is 11.4.0.106;"),
        ({"tensorrt": "10.3.0.30"}, "needs TensorRT 10.3.0.26, and here is 10.3.0.30;"),
        ({"compute_capability": "9.0", "gpu": "H200"}, "needs compute capability 8.7, and here is 9.0;"),
        ({"gpu": "Orin Nano"}, "needs the GPU Orin, and here is Orin Nano;"),
        ({"driver": "540.3.9"}, "needs driver 540.4.0, and here is 540.3.9;"),
        ({"driver": "99.1"}, "needs driver 540.4.0, and here is 99.1;"),
    ],
)
def test_a_foreign_engine_is_refused_by_both_values_and_what_to_do(changed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        engine.check_engine(BUILT, BUILT | changed)
    assert said in str(error.value)
    assert "yoloyard export WEIGHTS --to tensorrt" in str(error.value)


@pytest.mark.parametrize("driver", ["540.4.0", "540.10.0", "600.1", None])
def test_a_driver_that_is_not_older_or_not_known_is_no_reason(driver: str | None) -> None:
    engine.check_engine(BUILT, BUILT | {"driver": driver})
    engine.check_engine(BUILT | {"driver": None}, BUILT)


def test_a_machine_without_tensorrt_says_for_which_the_engine_is() -> None:
    with pytest.raises(UserError, match=r"built for Orin with TensorRT 10\.3\.0\.26; here is no TensorRT"):
        engine.check_engine(BUILT, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "best.engine").write_bytes(b"an engine")
    (tmp_path / "best.engine.json").write_text(json.dumps(BUILT), encoding="utf-8")
    return tmp_path / "best.engine"


def test_loading_an_engine_says_here_that_there_is_no_tensorrt(path: Path) -> None:
    with pytest.raises(UserError) as error:
        yoloyard.load(path)
    assert str(error.value).startswith(f"{path}: it was built for Orin with TensorRT 10.3.0.26; here is no TensorRT")


def test_loading_an_engine_that_fits_says_what_runs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "facts_here", lambda: BUILT)
    with pytest.raises(UserError, match="fits this machine, but yoloyard runs no engines"):
        yoloyard.load(path)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_an_engine_whose_sidecar_is_missing_or_damaged_is_refused(content: bytes | None, path: Path) -> None:
    sidecar = path.with_suffix(".engine.json")
    sidecar.unlink() if content is None else sidecar.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.engine\.json can't be read, so nothing says where .*best\.engine runs"):
        yoloyard.load(path)


@pytest.mark.parametrize("sidecar", [{}, {"tensorrt": 10, "driver": 7}])
def test_a_sidecar_that_says_too_little_fits_no_machine(
    sidecar: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "facts_here", lambda: BUILT)
    path.with_suffix(".engine.json").write_text(json.dumps(sidecar), encoding="utf-8")
    with pytest.raises(UserError, match=r"needs TensorRT (unknown|10), and here is 10\.3\.0\.26"):
        yoloyard.load(path)
