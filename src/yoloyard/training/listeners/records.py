"""The records of a run: metrics.jsonl and results.csv, an epoch a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from yoloyard.common.files import write_whole_text
from yoloyard.training.listeners.events import EpochMeasured, Event, Record, RunStarted


class Records:
    """A listener that keeps the figures of each epoch in the run folder."""

    def __init__(self) -> None:
        self._folder, self._records = Path(), list[Record]()

    def __call__(self, event: Event) -> None:
        """Take up what an earlier part of the run left; write each epoch's figures."""
        if isinstance(event, RunStarted):
            self._folder = event.folder
            self._records = [record for record in read_records(event.folder) if record["epoch"] <= event.epoch]
        elif isinstance(event, EpochMeasured):
            self._records.append(event.record)
            text = "".join(json.dumps(record) + "\n" for record in self._records)
            write_whole_text(self._folder / "metrics.jsonl", text)
            table = io.StringIO()
            writer = csv.DictWriter(table, list(dict.fromkeys(name for record in self._records for name in record)))
            writer.writeheader()
            writer.writerows(self._records)
            write_whole_text(self._folder / "results.csv", table.getvalue())


def read_records(folder: Path) -> list[Record]:
    """The lines of the run folder's metrics.jsonl; none if there is no such file."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def as_record(epoch: int, groups: Mapping[str, Mapping[str, float]]) -> Record:
    """`{"train": {"box": 1.0}}` as `{"epoch": 1, "train/box": 1.0}`."""
    return {"epoch": epoch} | {
        f"{group}/{name}": float(value) for group, values in groups.items() for name, value in values.items()
    }
