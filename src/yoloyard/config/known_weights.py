"""Weights files that others publish: where they are and under which terms (known_weights.toml)."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yoloyard.common.lineage import PERMISSIVE

TABLE = Path(__file__).with_name("known_weights.toml")


@dataclass(frozen=True)
class KnownFile:
    """A published file; `map50_95` in percent, `sha256` and `bytes` None where the first download notes them."""

    model: str  # of the registry
    file: str
    family: str
    size: str
    publisher: str
    address: str
    code: str  # licence
    weights: str | None  # licence; None: the publisher states none of their own
    data: str
    data_terms: str
    read_here: str | None  # what a test of yoloyard has read of this format
    map50_95: float | None = None
    imgsz: int = 640
    bytes: int | None = None
    sha256: str | None = None

    @property
    def licence(self) -> str:
        """The licence that holds for the weights: if none is stated for them, that of the code beside them."""
        return self.weights or self.code

    @property
    def is_permissive(self) -> bool:
        """May a product hold these weights without its own source being published?"""
        return {self.code, self.licence} <= {*PERMISSIVE}

    @property
    def terms(self) -> str:
        """All terms in a line."""
        own = f"weights {self.weights}" if self.weights else "no licence of their own for the weights"
        return f"code {self.code}, {own}; trained on {self.data}: {self.data_terms}"


@functools.cache
def table() -> dict[str, Any]:
    """What known_weights.toml says."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


@functools.cache
def known_files() -> Mapping[str, KnownFile]:
    """All published files by the models that they hold."""
    files = {}
    for family, row in table()["families"].items():
        data = table()["data"][row["data"]]
        for size, facts in row["files"].items():
            files[f"{family}{size}"] = KnownFile(
                model=f"{family}{size}",
                family=family,
                size=size,
                publisher=row["publisher"],
                code=row["code"],
                weights=row.get("weights"),
                data=data["name"],
                data_terms=data["terms"],
                read_here=row.get("read_here"),
                address=row["address"] + facts["file"],
                **facts,
            )
    return files


def find_known(name: str) -> KnownFile | None:
    """The published file that is called so, by its model (`yolov9s`) or by itself (`v9-s.pt`); None if none is."""
    lower = name.lower()
    by_file = {each.file: each for each in known_files().values()}
    return known_files().get(lower) or by_file.get(lower)


def where_to_get(name: str) -> str:
    """How to get the published file that is called so, and under which licence; empty for other names.

    For `yolov9s.pt`, a file of ultralytics that can't be read, it is the one that can.
    """
    if (known := find_known(name) or known_files().get(name.lower().removesuffix(".pt"))) is None:
        return ""
    return (
        f" `yoloyard weights get {known.model}` fetches {known.file}, which {known.publisher} publishes under "
        f"{known.licence}; nothing else downloads it. `yoloyard train --model {known.model}` starts from random "
        "weights."
    )
