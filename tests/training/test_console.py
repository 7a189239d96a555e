"""Bars are shown to those who can see them, and only to them."""

import importlib.util
import warnings
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from yoloyard.training.listeners.console import Console
from yoloyard.training.listeners.events import CheckpointWritten, EpochStarted


@pytest.mark.parametrize(
    ("console", "widgets", "shown"),
    [
        (RichConsole(force_terminal=True), False, True),
        (RichConsole(force_terminal=False), True, False),  # a file or a pipe
        (RichConsole(force_jupyter=True), False, False),  # with widgets: tests/end_to_end/test_notebook.py
    ],
)
def test_a_bar_needs_a_terminal_or_a_notebook_with_widgets(
    console: RichConsole, widgets: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    listener = Console()
    listener.console = console
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not listener.is_due()
        listener(EpochStarted(1, 2, 10))
        assert listener.is_due() == shown
        listener(CheckpointWritten(Path("last")))
        assert not listener.is_due()
