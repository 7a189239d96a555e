"""Which offer is recommended, and why."""

from typing import Any

import pytest

from made_offers import estimate, offer
from yoloyard.planning.choose import Demands, Recommendation, ranked, recommend
from yoloyard.planning.figures import Estimate, Offer

HOURS = {"T4": 20.0, "L4": 8.0, "H100": 1.0}
MARKET = [offer("T4", 0.5), offer("L4", 0.8), offer("L4", 0.3, spot=True), offer("H100", 3.0, "lambda")]


def on(each: Offer) -> Estimate:
    return estimate(each.gpu, HOURS[each.gpu] / each.count, each.count)


def recommended(
    *offers: Offer, here: float | None = None, memory: dict[str, int] | None = None, **demands: Any
) -> Recommendation:
    fitting = dict.fromkeys(HOURS, 16) | (memory or {})
    gpus = [estimate(name, hours, micro_batch=fitting[name]) for name, hours in HOURS.items()]
    choices = ranked(
        offers or MARKET,
        lambda each: estimate(each.gpu, HOURS[each.gpu] / each.count, each.count, micro_batch=fitting[each.gpu]),
    )
    own = None if here is None else estimate("T4", here)
    return recommend(choices, Demands(**demands), own, 100, gpus)


def test_the_cost_is_that_of_all_hosts_and_the_cheapest_run_comes_first() -> None:
    choices = ranked(MARKET, lambda each: estimate(each.gpu, HOURS[each.gpu], nodes=2))
    found = [(each.offer.gpu, each.offer.spot, each.cost) for each in choices]
    assert found == [
        ("L4", True, pytest.approx(4.8)),
        ("H100", False, pytest.approx(6.0)),
        ("L4", False, pytest.approx(12.8)),
        ("T4", False, pytest.approx(20.0)),
    ]


def test_an_offer_without_a_real_price_or_enough_memory_is_last_and_has_no_cost() -> None:
    odd = [offer("T4", 0.0), offer("T4", None), offer("T4", -1.0)]
    choices = ranked([*odd, *MARKET], lambda each: estimate(each.gpu, 1.0, micro_batch=each.gpu != "L4"))
    assert [each.cost for each in choices] == [0.5, 3.0, *[None] * 5]


def test_the_cheapest_is_taken_and_one_that_is_much_faster_is_named() -> None:
    found = recommended()
    assert (found.verdict, found.choice and found.choice.cost) == ("rent", pytest.approx(2.4))
    assert "the cheapest of 4 offers" in found.reason
    assert "Faster for little more: H100 at lambda" in found.reason


@pytest.mark.parametrize(
    ("demands", "cost"),
    [({"deadline": 5.0}, 3.0), ({"spot": False, "deadline": 9.0}, 3.0), ({"gpu": "L4", "spot": False}, 6.4)],
)
def test_of_those_that_keep_the_limits_the_cheapest_is_taken(demands: dict[str, Any], cost: float) -> None:
    found = recommended(**demands)
    assert (found.verdict, found.choice and found.choice.cost) == ("rent", pytest.approx(cost))


def test_cloud_and_region_are_compared_without_case() -> None:
    assert recommended(cloud="Lambda", region="US-EAST-1").choice == recommended(cloud="lambda").choice


def test_ones_own_host_is_enough_if_it_keeps_the_deadline() -> None:
    assert recommended(here=7.0, deadline=8.0).verdict == "own"
    assert recommended(here=9.0, deadline=8.0).verdict == "rent"
    assert "Your own machine would take 9.0 h" in recommended(here=9.0, deadline=8.0).reason


def test_without_a_deadline_ones_own_host_is_enough_if_it_is_done_overnight() -> None:
    assert recommended(here=11.0).verdict == "own"
    assert recommended(here=13.0).verdict == "rent"


def test_none_finishes_within_the_deadline() -> None:
    found = recommended(gpu="L4", deadline=4.0)
    assert found.verdict == "deadline"
    assert "None of these finishes within the deadline of 4.0 h: the nearest is L4" in found.reason
    assert "--epochs 50" in found.reason
    assert "other resources (H100 at lambda" in found.reason


def test_none_is_cheap_enough() -> None:
    found = recommended(max_cost=1.2, deadline=10.0)
    assert found.verdict == "cost"
    assert "None of these finishes within 10.0 h and for at most $1.20" in found.reason
    assert "--epochs 50" in found.reason


def test_none_has_enough_memory() -> None:
    everything = recommended(memory=dict.fromkeys(HOURS, 0))
    assert (everything.verdict, everything.choice) == ("memory", None)
    assert "lower --imgsz" in everything.reason
    others = recommended(memory={"T4": 0}, gpu="T4")
    assert others.verdict == "memory"
    assert "Others have: L4" in others.reason


def test_no_price_is_known() -> None:
    found = recommended(offer("T4", 0.0), deadline=10.0)
    assert found.verdict == "price"
    assert "the fastest GPU of the table is H100, 1.0 h; 2 GPUs finish within 10.0 h" in found.reason
    assert recommended(offer("T4", 0.0), deadline=0.5).verdict == "deadline"


def test_a_job_without_a_gpu_has_no_prices() -> None:
    assert recommend(ranked(MARKET, on), Demands(gpu="none"), estimate("T4", 99.0), 100, []).verdict == "price"


def test_providers_that_join_no_hosts_are_left_out_for_a_job_of_several() -> None:
    alone = offer("L4", 0.1, "runpod")
    assert Demands().allow(alone)
    assert not Demands(nodes=2).allow(alone)
    assert Demands(nodes=2).allow(offer("L4", 0.1, "aws"))


def test_what_preemptions_cost_is_left_out_and_said_to_be() -> None:
    assert "What preemptions cost is left out." in recommended(spot=True).reason
    assert "preemptions" not in recommended(spot=False).reason


def test_doubts_about_the_price_of_the_cheapest_are_said() -> None:
    odd = Offer("x", "", "", "L4", 1, 8, 0.1, False, None, doubts=("price has no date",))
    assert "Check its price first: price has no date" in recommended(odd).reason
