"""The command `plan`."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH, Json, count_of, given, print_json, stdout_for_json, takes_settings
from yoloyard.common.errors import UsageError
from yoloyard.config.settings import TrainConfig

if TYPE_CHECKING:
    from yoloyard.planning.choose import Choice
    from yoloyard.planning.figures import Estimate
    from yoloyard.planning.plan import Plan

SHOWN_OFFERS = 12
HOURS_OF = {"m": 1 / 60, "h": 1.0, "d": 24.0}
WIDTH = 100  # of tables that no terminal shows
_Above0 = cyclopts.validators.Number(gt=0)


@takes_settings(TrainConfig)
def plan(
    job: Annotated[Path | None, Parameter(help="a job file; flags win")] = None,
    /,
    *,
    max_cost: Annotated[float | None, Parameter(help="dollars that the run may cost", validator=_Above0)] = None,
    deadline: Annotated[str | None, Parameter(help="time that the run may take, such as 8h, 90m or 2d")] = None,
    prices: Annotated[
        Path | None, Parameter(help="CSV file with prices of your own (default: prices.csv in ~/.config/yoloyard)")
    ] = None,
    images: Annotated[
        int | None,
        Parameter(help="number of training images (with --tile: of tiles), if they are not here", validator=_Above0),
    ] = None,
    calibrate: Annotated[
        Path | None, Parameter(help="compare with this run and keep the correction for its device; plans nothing")
    ] = None,
    all: Annotated[bool, SWITCH, Parameter(help="show all GPUs and offers")] = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Say what a training needs, how long it takes on each GPU and what it costs, before anything is started."""
    from yoloyard.config.overrides import checked_overrides
    from yoloyard.planning.choose import Demands
    from yoloyard.planning.plan import make_plan

    if calibrate is not None:
        if job is not None or given(flags):
            raise UsageError("--calibrate compares a run with its own plan: leave the job file and other settings out")
        _calibrate(calibrate, json)
        return
    hours, overrides = None if deadline is None else _hours(deadline), given(flags)
    demands = Demands(max_cost=max_cost, deadline=hours)
    if job is not None:
        from yoloyard.jobs.job_file import read_job

        asked = read_job(job)
        overrides = {**asked.train, **overrides}
        hosts = {name: value for name, value in vars(asked.resources).items() if name != "disk"}
        max_cost, hours = max_cost or asked.limits.max_cost, hours or asked.limits.max_hours
        demands = Demands(**hosts, max_cost=max_cost, deadline=hours)
    with stdout_for_json(json):
        found = make_plan(checked_overrides(TrainConfig, overrides), demands, images, prices)
    if json:
        print_json(found.document())
    else:
        _show(found, all)


def _show(plan: "Plan", everything: bool) -> None:
    from yoloyard.cli.runs import print_table
    from yoloyard.common.image_size import size_text
    from yoloyard.planning.plan import CONTEXT_BYTES, MICRO_BATCHES
    from yoloyard.planning.prices import is_usable

    config, cost, images = plan.config, plan.cost, plan.images
    print(
        f"{config.model} at {size_text(config.imgsz)} pixels: {cost.parameters / 1e6:.1f} M parameters, a step takes "
        f"{cost.flops / 1e9:.0f} GFLOPs an image (traced)"
    )
    kind = f"{'tiles' if config.tile else 'images'} ({plan.kind_of_images})"
    print(
        f"{images.train:,} training and {images.val:,} validation {kind}, "
        f"batch {config.batch}, {count_of(config.epochs, 'epoch')}: {plan.estimates[0].steps:,} steps"
    )
    print(f"\nGB of a step by images of a micro-batch (traced; a GPU's own {CONTEXT_BYTES / 1e9:.1f} GB is modelled)\n")
    rows = [
        [f"{precision}{', recomputed activations' if recomputed else ''}"]
        + [f"{trace.peak(number) / 1e9:.1f}" for number in MICRO_BATCHES]
        for (precision, recomputed), trace in plan.traces.items()
    ]
    print_table(["", *map(str, MICRO_BATCHES)], *rows, piped_width=WIDTH)
    shown = {each.offer.gpu for each in plan.offered} | {plan.demands.gpu}
    here = [(f"here: {each.gpu.name if each.gpu.capability else 'CPU'}", each) for each in plan.here]
    every = everything or not (plan.offered or plan.demands.gpu)
    rented = [(each.gpu.name, each) for each in plan.estimates if every or each.gpu.name in shown]
    where = f"{plan.demands.count or 1} in each of {count_of(plan.demands.nodes, 'host')}"
    print(f"GPUs, {where}; what is here: {', '.join(each.gpu.name for each in plan.here)}\n")
    head = ["GPU", "GB", "largest micro-batch", "images/s", "hours", "bound by", "hours are", "on demand", "spot"]
    cheapest = _cheapest(plan)
    table = [
        _gpu_row(plan, name, each, [cheapest.get((name, spot)) for spot in (False, True)])
        for name, each in here + rented
    ]
    print_table(head, *table, piped_width=WIDTH)
    offers = plan.offered if everything else list(_best_regions(plan))[:SHOWN_OFFERS]
    if offers:
        print("Offers, the cheapest run first:\n")
        doubts = list(dict.fromkeys(doubt for each in offers for doubt in each.offer.doubts))
        head = ["cost $", "hours", "$ an hour", "GPU", "provider", "region", "instance", "spot", "dated", "note"]
        print_table(head, *(_offer_row(each, doubts) for each in offers), piped_width=WIDTH)
        for number, doubt in enumerate(doubts, 1):
            print(f"({number}) {doubt}")
        if rest := len(plan.offered) - len(offers):
            unusable = sum(not is_usable(each.offer) for each in plan.offered)
            odd = f", {unusable:,} of all without a price that can be used" if unusable else ""
            print(f"--all shows {rest:,} more{odd}")
    for note in plan.notes:
        print(note)
    print(f"\n{plan.recommendation.reason}")


def _gpu_row(plan: "Plan", name: str, each: "Estimate", cheapest: list["Choice | None"]) -> list[str]:
    from yoloyard.planning.choose import hours_text

    memory = f"{each.gpu.memory / 1e9:.0f}"
    largest = str(plan.largest(each.gpu)) if each.gpu.capability else "-"
    if not each.micro_batch:
        return [name, memory, "0: too small", "", "", "", "", "", ""]
    if each.recomputed and not plan.config.checkpoint_activations:
        largest = f"{plan.largest(each.gpu, True)} recomputed"
    costs = ["-" if choice is None else f"${choice.cost:.2f} {choice.offer.provider}" for choice in cheapest]
    figures = [f"{each.images_per_second:,.0f}", hours_text(each.hours), each.bound, each.kind]
    return [name, memory, largest, *figures, *costs]


def _cheapest(plan: "Plan") -> dict[tuple[str, bool], "Choice"]:
    """The cheapest offer of each GPU, on demand and spot, with as many GPUs as the table says."""
    demands = dataclasses.replace(plan.demands, count=plan.demands.count or 1, spot=None)
    found: dict[tuple[str, bool], Choice] = {}
    for choice in plan.choices:
        if choice.cost is not None and demands.allow(choice.offer):
            found.setdefault((choice.offer.gpu, choice.offer.spot), choice)
    return found


def _best_regions(plan: "Plan") -> Iterator["Choice"]:
    """Of each provider, GPU, count and kind of price the cheapest offer."""
    seen = set()
    for choice in plan.offered:
        offer = choice.offer
        key = (offer.provider, offer.gpu, offer.count, offer.spot)
        if key not in seen:
            seen.add(key)
            yield choice


def _offer_row(choice: "Choice", doubts: list[str]) -> list[str]:
    from yoloyard.planning.choose import hours_text

    offer = choice.offer
    cost = "-" if choice.cost is None else f"{choice.cost:.2f}"
    hours = hours_text(choice.estimate.hours) if choice.estimate.micro_batch else "-"
    price = "-" if offer.price is None else f"{offer.price:.2f}"
    gpus = f"{offer.count} x {offer.gpu}" if offer.count > 1 else offer.gpu
    place = [offer.provider, offer.region, offer.instance, "spot" if offer.spot else ""]
    notes = " ".join(f"({doubts.index(doubt) + 1})" for doubt in offer.doubts)
    return [cost, hours, price, gpus, *place, offer.dated or "-", notes]


def _calibrate(run: Path, as_json: bool) -> None:
    from yoloyard.planning.calibrate import calibrate, keep

    with stdout_for_json(as_json):
        found = calibrate(run)
        file = keep(found)
    if as_json:
        rows = {name: {"planned": planned, "measured": measured} for name, (planned, measured) in found.rows.items()}
        print_json(
            {"run": run, "device": found.device.name, "precision": found.precision, "figures": rows, "kept": file}
        )
        return
    print("\n".join(found.lines()))
    print(f"kept in {file}: plans for this device use it")


def _hours(text: str) -> float:
    """The hours that 8h, 90m, 2d or 8 say. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhd]?)", text.strip().lower())
    if not match or not float(match[1]):
        raise UsageError(f"--deadline must be a time such as 8h, 90m or 2d, not {text!r}")
    return float(match[1]) * HOURS_OF[match[2] or "h"]
