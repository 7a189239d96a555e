"""Copies between host and device: asynchronous only where nothing can be read or overwritten too early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from on_device import some_batch
from yoloyard.common import structures
from yoloyard.training.engine.engine import StepReport

ACCELERATORS = ["cuda", "mps", "xpu"]


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device, whose copies to the host are done when somebody waits for them."""

    kind = "mps"
    pending: list[Callable[[], object]]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(self.kind)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.to:
            return super().__torch_function__(func, types, args, kwargs)
        assert args[1:] == ("cpu",)
        assert kwargs == {"non_blocking": True}
        source = args[0].as_subclass(torch.Tensor)
        arriving = torch.full_like(source, float("nan"))
        cls.pending.append(lambda: arriving.copy_(source))
        return arriving


class Event:
    """As torch.Event: once it is synchronized, what was begun before it was recorded is done."""

    kinds: list[str]

    def __init__(self, kind: str) -> None:
        self.kinds.append(kind)
        self.before: list[Callable[[], object]] = []

    def record(self) -> None:
        self.before = list(Elsewhere.pending)

    def synchronize(self) -> None:
        for copy in self.before:
            copy()


def report(flags: tuple[float, ...], place: Callable[[torch.Tensor], torch.Tensor]) -> StepReport:
    """A report with these flags and the losses 2 and 3, its tensors where `place` puts them."""
    found_inf, losses_finite = (place(torch.tensor(flag)) for flag in flags[:2])
    asked, losses, measured = (place(torch.tensor(values)) for values in (flags[2:], (2.0, 3.0), (1.0, 0.1, 0.9)))
    return StepReport(losses, found_inf, found_inf, losses_finite, asked, measured, number=7)


@pytest.mark.parametrize("kind", ACCELERATORS)
@pytest.mark.parametrize("flags", [(0.0, 1.0, 0.0, 0.0), (1.0, 1.0, 2.0, 0.0), (1.0, 0.0, 1.0, 1.0)])
def test_a_step_is_judged_by_flags_that_have_arrived(
    kind: str, flags: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(Event, "kinds", [], raising=False)
    monkeypatch.setattr(Elsewhere, "pending", [], raising=False)
    monkeypatch.setattr(Elsewhere, "kind", kind)
    verdict = report(flags, lambda tensor: tensor.as_subclass(Elsewhere)).send()
    assert verdict.values.isnan().all()  # the host goes on meanwhile
    assert verdict.read() == tuple(flag > 0 for flag in flags)
    assert verdict.figures()[:2] == (7, (2.0, 3.0))
    assert Event.kinds == [kind]


@pytest.mark.parametrize("flags", [(0.0, 1.0, 0.0, 2.0), (1.0, 0.0, 2.0, 0.0)])
def test_on_a_cpu_there_is_nothing_to_wait_for(flags: tuple[float, ...]) -> None:
    verdict = report(flags, lambda tensor: tensor).send()
    assert verdict.arrival is None
    assert verdict.read() == tuple(flag > 0 for flag in flags)


class Host(torch.Tensor):
    """A tensor on the host that notes how it is copied."""

    pinned = False
    asked: list[tuple[str, bool]]

    def is_pinned(self) -> bool:  # type: ignore[override]
        return self.pinned

    def to(self, device: torch.device, non_blocking: bool, memory_format: torch.memory_format) -> torch.Tensor:  # type: ignore[override]
        self.asked.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize("kind", ["cpu", *ACCELERATORS])
@pytest.mark.parametrize("pinned", [False, True])
def test_the_host_goes_on_only_while_pinned_memory_is_copied_to_cuda(
    kind: str, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "asked", [], raising=False)
    monkeypatch.setattr(Host, "pinned", pinned)
    batch = some_batch()
    for name in ("images", "boxes", "labels", "ignore"):
        setattr(batch, name, getattr(batch, name).as_subclass(Host))
    batch.to(torch.device(kind))
    assert Host.asked == [(kind, pinned and kind == "cuda")] * 4


def test_a_batch_keeps_its_values_and_its_layout() -> None:
    batch = some_batch()
    sent = batch.to(torch.device("cpu"))
    for name in ("images", "boxes", "labels", "ignore"):
        assert torch.equal(getattr(sent, name), getattr(batch, name))
    assert sent.images.is_contiguous(memory_format=torch.channels_last)
    assert sent.image_ids == batch.image_ids
    assert structures.send(batch.labels, torch.device("cpu")).dtype == torch.int64
