"""What keeps packages from reporting; tests/licences/test_no_reports.py watches the network."""

import importlib
import os
import sys

import pytest

from yoloyard.common.quiet import quiet


def test_it_holds_for_this_process_and_for_those_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)  # imported before
    quiet()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("openvino_telemetry")
