"""What the server counts, in the form of Prometheus."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SCORES = tuple(tenth / 10 for tenth in range(1, 11))


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "yoloyard_request_seconds",
            "From the head of a request to the end of its answer; status 499: the client left before.",
            ("route", "status"),
            registry=registry,
            buckets=SECONDS,
        )
        self.waiting = Gauge("yoloyard_queue_requests", "Requests that wait for the network.", registry=registry)
        self.computing = Gauge("yoloyard_computing_requests", "Requests that are computed now.", registry=registry)
        self.batch_seconds = Histogram(
            "yoloyard_batch_seconds",
            "From a batch's start to its results: decoding, network, suppression.",
            ("model",),
            registry=registry,
            buckets=SECONDS,
        )
        self.batch_images = Histogram(
            "yoloyard_batch_images", "Images of a batch.", ("model",), registry=registry, buckets=(1, 2, 4, 8, 16, 32)
        )
        self._scores = Histogram(
            "yoloyard_score", "Scores of the boxes by class.", ("model", "class"), registry=registry, buckets=SCORES
        )

    def count_scores(self, model: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count the boxes that `json_rows` gave: a class whose scores drift shows here."""
        for row in rows:
            self._scores.labels(model, row["name"]).observe(row["score"])
