"""The plan's order of offers is that of SkyPilot's optimizer, on the same catalogs and for the same hours.

Google's credentials and packages are not there, so its optimizer leaves it out: its prices are compared by themselves.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_environment import in_cloud_environment, needs_skypilot
from made_offers import GOOGLE, HEADER, estimate, write_catalog
from yoloyard.planning.choose import Choice, Demands, ranked
from yoloyard.planning.figures import Estimate, Offer
from yoloyard.planning.prices import catalog_offers

HOURS = {"L4": 8.0, "A10G": 5.3, "A100-80GB": 2.9, "H100": 1.3}
QUESTIONS: list[dict[str, Any]] = [
    {"hours": HOURS, "count": 1, "nodes": 1, "spot": False},
    {"hours": HOURS, "count": 1, "nodes": 1, "spot": True},
    {"hours": HOURS, "count": 8, "nodes": 1, "spot": False},
    {"hours": HOURS, "count": 1, "nodes": 2, "spot": False},
]
REGIONS = {"aws": "us-east-1 us-west-2 eu-west-1", "lambda": "us-east-1 us-west-1", "runpod": "US CA"}


def write_catalogs(folder: Path) -> None:
    """Catalogs with prices drawn by a seed, each instance on demand at one price in all zones of a region."""
    draw = random.Random(1)
    for cloud, regions in REGIONS.items():
        rows = []
        for gpu, hours in HOURS.items():
            for count in (1, 8):
                for region in regions.split():
                    price = count * 4 / hours * draw.uniform(0.5, 2)
                    for zone in "ab"[: 1 if cloud == "lambda" else 2]:
                        spot = "" if cloud == "lambda" else f"{price * draw.uniform(0.2, 0.8):.4f}"
                        place = region if cloud == "lambda" else f"{region},{region}{zone}"
                        name = f"{cloud}-{gpu}-{count}" if cloud != "runpod" else f"{count}x_{gpu}_SECURE"
                        rows.append(f"{name},{gpu},{count}.0,{8 * count}.0,{64 * count}.0,,{price:.4f},{spot},{place}")
        header = HEADER.removesuffix(",AvailabilityZone") if cloud == "lambda" else HEADER
        write_catalog(folder, cloud, *rows, header=header)
    write_catalog(folder, "gcp", *GOOGLE)
    (folder / "common").mkdir()
    lines = "".join(f"{gpu},\"['AWS']\"\n" for gpu in HOURS)
    (folder / "common" / "accelerators.csv").write_text(f"AcceleratorName,Clouds\n{lines}")
    lines = "".join(f"{gpu},80,NVIDIA\n" for gpu in HOURS)
    (folder / "common" / "metadata.csv").write_text(f"GPU,MemoryGB,Manufacturer\n{lines}")


def by_name(estimates: dict[str, Estimate]) -> Callable[[Offer], Estimate]:
    return lambda offer: estimates[offer.gpu]


def places(choices: list[Choice]) -> list[tuple[str, str, str]]:
    return [(each.offer.provider, each.offer.instance, each.offer.region) for each in choices]


@needs_skypilot
@pytest.mark.slow
def test_the_order_is_that_of_skypilots_optimizer(tmp_path: Path) -> None:
    catalogs = tmp_path / ".sky" / "catalogs" / "v8"
    write_catalogs(catalogs)
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    in_cloud_environment(tmp_path, Path(__file__).with_name("skypilot_order.py"), tmp_path / "questions.json")
    answers = json.loads((tmp_path / "questions.answers").read_text())

    offers, notes = catalog_offers(catalogs)
    assert notes == []
    ours = {(each.instance, each.spot): each.price for each in offers if each.provider == "gcp"}
    assert len(ours) == 2 * len(answers["google"]) == 6
    for instance, on_demand, spot in answers["google"]:
        assert (ours[instance, False], ours[instance, True]) == pytest.approx((on_demand, spot))

    offers = [each for each in offers if each.provider != "gcp"]
    for question, answer in zip(QUESTIONS, answers["orders"], strict=True):
        count, nodes, spot = question["count"], question["nodes"], question["spot"]
        demands = Demands(count=count, spot=spot, nodes=nodes)
        on = {gpu: estimate(gpu, hours, count, nodes) for gpu, hours in HOURS.items()}
        choices = ranked(filter(demands.allow, offers), by_name(on))
        of_skypilot = {(cloud, instance, region): cost for cloud, instance, region, cost in reversed(answer)}
        order = list(dict.fromkeys((cloud, instance, region) for cloud, instance, region, _ in answer))
        assert len(order) == len(HOURS) * sum(len(REGIONS[cloud].split()) for cloud in {each[0] for each in order})
        assert places(choices) == order
        assert [each.cost for each in choices] == pytest.approx([of_skypilot[each] for each in order], rel=1e-3)
