"""Which offer to take: what each costs for the whole run, the order, and a recommendation with its reason."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from yoloyard.common.log import bytes_text
from yoloyard.planning.figures import Estimate, Offer
from yoloyard.planning.prices import is_usable

# Where SkyPilot starts no job of several hosts: CloudImplementationFeatures.MULTI_NODE in sky/clouds.
ONE_HOST = {"hyperbolic", "primeintellect", "runpod", "seeweb", "shadeform", "vast", "verda", "vsphere", "yotta"}
OWN_HOURS = 12.0  # without a deadline, an own host that is done overnight is enough
MUCH_FASTER, LITTLE_DEARER = 0.5, 1.5  # an offer that is named beside the cheapest one

Verdict = Literal["own", "rent", "deadline", "cost", "memory", "price"]


@dataclass(frozen=True)
class Demands:
    """What an offer must be. None: anything."""

    gpu: str | None = None  # a name of gpus.toml
    count: int | None = None  # GPUs of each host
    nodes: int = 1
    spot: bool | None = None
    region: str | None = None
    cloud: str | None = None
    max_cost: float | None = None  # dollars
    deadline: float | None = None  # hours

    def allow(self, offer: Offer) -> bool:
        """Whether the host is one that was asked for; neither cost nor deadline is looked at."""
        pairs: list[tuple[object, object]] = [(self.gpu, offer.gpu), (self.count, offer.count), (self.spot, offer.spot)]
        for wanted, given in ((self.region, offer.region), (self.cloud, offer.provider)):
            pairs.append((wanted and wanted.lower(), given.lower()))
        can_be_several = self.nodes == 1 or offer.provider.lower() not in ONE_HOST
        return can_be_several and all(wanted in (None, given) for wanted, given in pairs)

    @property
    def limits(self) -> str:
        """Such as "within 8.0 h and for at most $20.00"."""
        parts = [f"within {self.deadline:.1f} h"] if self.deadline is not None else []
        return " and ".join([*parts, *([f"for at most ${self.max_cost:.2f}"] if self.max_cost is not None else [])])


@dataclass(frozen=True)
class Choice:
    """An offer, and what the job would be on it."""

    offer: Offer
    estimate: Estimate
    cost: float | None  # dollars of all hosts for the hours of the run; None: no usable price, or no image fits

    def __str__(self) -> str:
        offer = self.offer
        gpus = f"{offer.count} x {offer.gpu}" if offer.count > 1 else offer.gpu
        place = ", ".join(filter(None, (offer.instance, offer.region, "spot" if offer.spot else "")))
        cost = "at an unknown cost" if self.cost is None else f"for ${self.cost:.2f}"
        return f"{gpus} at {offer.provider}{place and f' ({place})'}: {hours_text(self.estimate.hours)} h {cost}"


@dataclass(frozen=True)
class Recommendation:
    """What to do, and why. `choice`: the offer to take, or the nearest one where none will do."""

    verdict: Verdict
    reason: str
    choice: Choice | None = None


def ranked(offers: Iterable[Offer], estimate: Callable[[Offer], Estimate]) -> list[Choice]:
    """All offers, the cheapest for the whole run first; those that can't run the job or have no usable price last.

    The cost is price x hours x hosts. Providers bill by seconds or minutes, so hours are not rounded up; the start of
    a host and what a preemption costs (the work since the last save, and a new start) are left out.
    """
    choices = []
    for offer in offers:
        found = estimate(offer)
        priced = is_usable(offer) and found.micro_batch > 0
        choices.append(Choice(offer, found, (offer.price or 0) * found.hours * found.nodes if priced else None))
    return sorted(choices, key=_order)


def recommend(
    choices: Sequence[Choice], demands: Demands, here: Estimate | None, epochs: int, gpus: Sequence[Estimate]
) -> Recommendation:
    """What to take of ranked `choices`: the cheapest that is allowed and keeps the limits, unless this host will do.

    `here`: the job on this host. `epochs`: of the job. `gpus`: the job on each GPU, for what prices don't decide.
    """
    allowed = [choice for choice in choices if demands.allow(choice.offer)]
    able = [choice for choice in allowed if choice.estimate.micro_batch > 0]
    priced = [choice for choice in able if choice.cost is not None]
    good = [choice for choice in priced if _keeps(choice, demands)]
    own = here.hours if here is not None and here.micro_batch > 0 else math.inf
    if own <= (OWN_HOURS if demands.deadline is None else demands.deadline):
        of = "" if demands.deadline is None else f" of {demands.deadline:.1f} h"
        beside = f" (the cheapest rented host is {good[0]})" if good else ""
        return Recommendation("own", f"Your own machine is enough: it takes {hours_text(own)} h{of}{beside}.")
    if not gpus:
        return Recommendation("price", "No prices are known of hosts without a GPU, which the job asks for.")
    mine = f" Your own machine would take {hours_text(own)} h." if own < math.inf else ""
    if good:
        return _rent(good, demands, mine)
    if not able and (allowed or not any(each.micro_batch for each in gpus)):
        return _no_memory(choices, gpus, mine)
    if not priced:
        return _without_prices(bool(choices), gpus, demands, mine)
    return _beyond_limits(choices, priced, demands, epochs, mine)


def _rent(good: Sequence[Choice], demands: Demands, mine: str) -> Recommendation:
    best = good[0]
    limits = f" that finish {demands.limits}" if demands.limits else ""
    reason = f"Take {best}, the cheapest of {len(good)} offers{limits}."
    if best.offer.doubts:
        reason += f" Check its price first: {', '.join(best.offer.doubts)}."
    if best.offer.spot:
        reason += " What preemptions cost is left out."
    faster = [
        each
        for each in good
        if each.estimate.hours <= MUCH_FASTER * best.estimate.hours
        and (each.cost or 0) <= LITTLE_DEARER * (best.cost or 0)
    ]
    if faster:
        reason += f" Faster for little more: {faster[0]}."
    return Recommendation("rent", reason + mine, best)


def _no_memory(choices: Sequence[Choice], gpus: Sequence[Estimate], mine: str) -> Recommendation:
    able = [each for each in gpus if each.micro_batch > 0]
    need = f"a step with one image takes {bytes_text(min(each.peak_bytes for each in gpus))}"
    if not able:
        reason = f"None has enough memory: {need}: lower --imgsz or take a smaller --model.{mine}"
        return Recommendation("memory", reason)
    least = min(able, key=lambda each: each.gpu.memory)
    choice = next((each for each in choices if each.cost is not None), None)
    found = f"{choice}" if choice else f"{least.gpu.name} has enough"
    return Recommendation("memory", f"None of these has enough memory: {need}. Others have: {found}.{mine}", choice)


def _without_prices(are_there: bool, gpus: Sequence[Estimate], demands: Demands, mine: str) -> Recommendation:
    """No offer has a price: what the table of GPUs says alone."""
    able = sorted((each for each in gpus if each.micro_batch > 0), key=lambda each: each.hours)
    fastest = f"{able[0].gpu.name}, {hours_text(able[0].hours)} h" if able else "none"
    what = "No offer with a usable price is what was asked for" if are_there else "No price is known"
    in_time = [each.gpu.name for each in able if demands.deadline is None or each.hours <= demands.deadline]
    if not in_time:
        limit = f"None of these finishes within the deadline of {demands.deadline or 0:.1f} h"
        return Recommendation("deadline", f"{limit}: the fastest GPU is {fastest}. {what}.{mine}")
    enough = f"; {len(in_time)} GPUs finish within {demands.deadline:.1f} h" if demands.deadline else ""
    return Recommendation("price", f"{what}; the fastest GPU of the table is {fastest}{enough}.{mine}")


def hours_text(hours: float) -> str:
    """The hours with as many digits as mean something."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _beyond_limits(
    choices: Sequence[Choice], priced: Sequence[Choice], demands: Demands, epochs: int, mine: str
) -> Recommendation:
    """None keeps the limits: the nearest one, and what would help."""
    in_time = [each for each in priced if demands.deadline is None or each.estimate.hours <= demands.deadline]
    nearest = in_time[0] if in_time else min(priced, key=lambda each: each.estimate.hours)
    share = 1.0 if in_time else (demands.deadline or 0) / nearest.estimate.hours
    if demands.max_cost is not None:
        share = min(share, demands.max_cost / (nearest.cost or math.inf))
    others = [each for each in choices if each.cost is not None and _keeps(each, demands)]
    helps = [f"other resources ({others[0]})"] if others else []
    helps += [f"--epochs {int(epochs * share)}"] if int(epochs * share) else []
    helps.append("a smaller --imgsz or --model")
    what = f"finishes {demands.limits}" if in_time else f"finishes within the deadline of {demands.deadline:.1f} h"
    reason = f"None of these {what}: the nearest is {nearest}. What would help: {', or '.join(helps)}.{mine}"
    return Recommendation("cost" if in_time else "deadline", reason, nearest)


def _keeps(choice: Choice, demands: Demands) -> bool:
    in_time = demands.deadline is None or choice.estimate.hours <= demands.deadline
    return in_time and (demands.max_cost is None or (choice.cost or 0) <= demands.max_cost)


def _order(choice: Choice) -> tuple[object, ...]:
    cost = math.inf if choice.cost is None else choice.cost
    offer = choice.offer
    hours = choice.estimate.hours if choice.estimate.micro_batch else math.inf
    return cost, hours, offer.provider, offer.region, offer.instance
