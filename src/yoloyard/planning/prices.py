"""What hosts with GPUs cost: SkyPilot's catalogs and one's own price list as offers, and what is odd about a price.

Nothing is downloaded here. SkyPilot keeps its catalogs in ~/.sky/catalogs/v8/CLOUD/vms.csv, each as old as its file.
"""

import csv
import dataclasses
import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from yoloyard.common.errors import UsageError
from yoloyard.planning.figures import Offer
from yoloyard.planning.gpus import find_gpu
from yoloyard.planning.price_list import read_price_list

MAX_AGE_DAYS = 30
FAR = 3.0  # times the median price of a GPU, or a third of it
MIN_NEIGHBOURS = 3  # prices that a median needs
SHOWN_NAMES = 8
HOW_TO_FETCH = "pip install 'yoloyard[cloud]' and run `sky gpus list`, which fetches them"

# Google's catalog has a price for the GPU and one for its host: how the names of the hosts of each GPU begin, and how
# many cores they have by the number of GPUs, where the name doesn't say it. SkyPilot's rules, catalog/gcp_catalog.py.
GCP_HOSTS: dict[str, tuple[str, dict[int, int]]] = {
    "A100": ("a2-highgpu-{count}g", {}),
    "A100-80GB": ("a2-ultragpu-{count}g", {}),
    "L4": ("g2-standard-", {1: 4, 2: 24, 4: 48, 8: 96}),
    "H100": ("a3-highgpu-{count}g", {}),
    "H200": ("a3-ultragpu-{count}g", {}),
    "B200": ("a4-highgpu-{count}g", {}),
    "RTXPRO6000": ("g4-standard-", {1: 48, 2: 96, 4: 192, 8: 384}),
    "T4": ("n1-", {1: 4, 2: 8, 4: 48}),
}
GCP_OTHERS = ("n1-", {1: 8, 2: 16, 4: 32, 8: 64, 16: 128})
GCP_GIB_OF_A_CORE = 4  # that SkyPilot asks of n1 at least

Row = dict[str, str]  # of a catalog
COLUMNS = {"InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "Price", "SpotPrice", "Region"}


def config_folder() -> Path:
    """Where a user's price list and calibrations lie: yoloyard in XDG_CONFIG_HOME or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "yoloyard"


def catalog_folder() -> Path:
    """Where SkyPilot keeps its catalogs."""
    return Path(os.environ.get("SKY_RUNTIME_DIR") or Path.home()) / ".sky" / "catalogs" / "v8"


def all_offers(own: Path | None, today: date | None = None) -> tuple[list[Offer], list[str]]:
    """All offers, each with its doubts, and lines about what is missing.

    `own`: the user's price list; without it the one in the config folder, if there is one. Raises UsageError if a list
    is wrong.
    """
    own = own or next(filter(Path.is_file, [config_folder() / "prices.csv"]), None)
    offers, notes = catalog_offers(catalog_folder())
    if own is not None:
        offers += read_price_list(own)
    return with_doubts(offers, today or datetime.now(UTC).date()), notes


def catalog_offers(folder: Path) -> tuple[list[Offer], list[str]]:
    """The offers of SkyPilot's catalogs, at the lowest price of a region's zones, and lines about what is left out."""
    files = sorted(folder.glob("*/vms.csv"))
    if not files:
        return [], [f"no price catalogs are in {folder}: {HOW_TO_FETCH}; or give a list of your own by --prices"]
    offers: list[Offer] = []
    notes: list[str] = []
    unknown = Counter[str]()
    for file in files:
        dated = datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines, restval="")
                rows = list(reader)
            if missing := COLUMNS - set(reader.fieldnames or ()):
                raise ValueError(f"without the column {min(missing)}")
        except (OSError, ValueError, csv.Error) as error:
            notes.append(f"{file} is no catalog of SkyPilot ({error}): delete it, and {HOW_TO_FETCH}")
            continue
        rows = _with_hosts(rows) if file.parent.name == "gcp" else rows
        offers += _cheapest_zones(_row_offers(file.parent.name, dated, rows, unknown))
    if unknown:
        names = ", ".join(name for name, _ in unknown.most_common(SHOWN_NAMES)) + " ..." * (len(unknown) > SHOWN_NAMES)
        notes.append(f"{unknown.total():,} rows of the catalogs are of GPUs that yoloyard knows nothing of: {names}")
    return offers, notes


def with_doubts(offers: Sequence[Offer], today: date) -> list[Offer]:
    """The offers with what is odd about their prices, which are compared with those of the same GPU."""
    of_a_gpu: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for offer in offers:
        if is_usable(offer):
            of_a_gpu[offer.gpu, offer.spot].append((offer.price or 0) / offer.count)
    medians = {key: statistics.median(prices) for key, prices in of_a_gpu.items() if len(prices) >= MIN_NEIGHBOURS}
    return [
        dataclasses.replace(offer, doubts=tuple(_doubts(offer, medians.get((offer.gpu, offer.spot)), today)))
        for offer in offers
    ]


def is_usable(offer: Offer) -> bool:
    """Whether the price can be multiplied with hours. Zero and less never are the cheapest."""
    return offer.price is not None and offer.price > 0


def _doubts(offer: Offer, median: float | None, today: date) -> Iterator[str]:
    if offer.price is None:
        yield "price missing"
    elif offer.price <= 0:
        yield "price is zero" if offer.price == 0 else "price is negative"
    elif median is not None and not 1 / FAR <= (ratio := offer.price / offer.count / median) <= FAR:
        yield f"{ratio:.2g} times the usual price of this GPU (${median:.2f} an hour)"
    if offer.dated is None:
        yield "price has no date"
    elif (age := (today - date.fromisoformat(offer.dated)).days) > MAX_AGE_DAYS:
        yield f"price is {age} days old"
    elif age < -1:  # a day is the difference of time zones
        yield f"price is dated in the future, {offer.dated}"


def _row_offers(provider: str, dated: str, rows: Sequence[Row], unknown: Counter[str]) -> Iterator[Offer]:
    """Two offers of each row with a GPU that we know, on demand and, where there is a price, spot."""
    known: dict[str, str | None] = {}
    for row in rows:
        name, count = row["AcceleratorName"], _number(row["AcceleratorCount"]) or 0
        if not name or not row["InstanceType"] or count < 1:  # a host without GPU, or with a part of one
            continue
        if name not in known:
            try:
                known[name] = find_gpu(name).name
            except UsageError:
                known[name] = None
        gpu = known[name]
        if gpu is None:
            unknown[name] += 1
            continue
        cores = int(_number(row["vCPUs"]) or 0)
        common = (provider, row["Region"], row["InstanceType"], gpu, int(count), cores)
        yield Offer(*common, price=_number(row["Price"]), spot=False, dated=dated)
        if spot := row["SpotPrice"]:
            yield Offer(*common, price=_number(spot), spot=True, dated=dated)


def _cheapest_zones(offers: Iterator[Offer]) -> list[Offer]:
    best: dict[tuple[str, str, bool], Offer] = {}
    for offer in offers:
        key = (offer.region, offer.instance, offer.spot)
        if key not in best or (is_usable(offer), -(offer.price or 0)) > (is_usable(best[key]), -(best[key].price or 0)):
            best[key] = offer
    return list(best.values())


def _with_hosts(rows: Sequence[Row]) -> list[Row]:
    """Google's rows of GPUs, each with the cheapest host of its zone that it can be in."""
    hosts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["InstanceType"] and _number(row["Price"]):
            hosts[row.get("AvailabilityZone", "")].append(row)
    whole = []
    for row in rows:
        count = int(_number(row["AcceleratorCount"]) or 0)
        if row["InstanceType"] or count < 1:
            continue
        name, cores_of = GCP_HOSTS.get(row["AcceleratorName"], GCP_OTHERS)
        cores = cores_of.get(count, 0)
        gib = GCP_GIB_OF_A_CORE * cores if name == "n1-" else 0
        fitting = [
            host
            for host in hosts[row.get("AvailabilityZone", "")]
            if host["InstanceType"].startswith(name.format(count=count))
            and (_number(host["vCPUs"]) or 0) >= cores
            and (_number(host["MemoryGiB"]) or 0) >= gib
        ]
        if fitting:
            host = min(fitting, key=lambda each: _number(each["Price"]) or 0)
            pairs = {price: (_number(row[price]), _number(host[price])) for price in ("Price", "SpotPrice")}
            prices = {price: str(sum(filter(None, pair))) if all(pair) else "" for price, pair in pairs.items()}
            whole.append(row | {"InstanceType": host["InstanceType"], "vCPUs": host["vCPUs"]} | prices)
    return whole


def _number(text: str) -> float | None:
    """The number of a cell of a catalog; None where there is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
