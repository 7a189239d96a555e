"""Bars are shown to those who can see them, and only to them."""

import importlib.util
import warnings

import pytest
from rich.console import Console

from yoloyard.training.listeners.monitor import Monitor


@pytest.mark.parametrize(
    ("console", "widgets", "shown"),
    [
        (Console(force_terminal=True), False, True),
        (Console(force_terminal=False), True, False),  # a file or a pipe
        (Console(force_jupyter=True), False, False),  # with widgets: tests/end_to_end/test_notebook.py
    ],
)
def test_a_bar_needs_a_terminal_or_a_notebook_with_widgets(
    console: Console, widgets: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    monitor = Monitor()
    monitor.console = console
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monitor.bar("epoch 1/2", 10) as bar:
            assert bar.is_due() == shown
