"""Offers of SkyPilot's catalogs and of a list of one's own, and what is said of odd prices."""

import dataclasses
import os
from datetime import date
from pathlib import Path

import pytest

from made_offers import GOOGLE, offer, write_catalog
from yoloyard.planning.figures import Offer
from yoloyard.planning.prices import all_offers, catalog_folder, catalog_offers, is_usable, with_doubts

TODAY = date(2026, 11, 30)


def doubts(*offers: Offer) -> list[tuple[str, ...]]:
    return [each.doubts for each in with_doubts(offers, TODAY)]


def test_a_row_of_a_catalog_is_an_offer_on_demand_and_one_spot(tmp_path: Path) -> None:
    write_catalog(tmp_path, "aws", "g6.xlarge,L4,1.0,4.0,16.0,,0.8048,0.31,us-east-1,us-east-1a")
    os.utime(tmp_path / "aws" / "vms.csv", (1796000000, 1796000000))
    offers, notes = catalog_offers(tmp_path)
    assert offers == [
        Offer("aws", "us-east-1", "g6.xlarge", "L4", 1, 4, 0.8048, spot=False, dated="2026-11-30"),
        Offer("aws", "us-east-1", "g6.xlarge", "L4", 1, 4, 0.31, spot=True, dated="2026-11-30"),
    ]
    assert notes == []


def test_of_the_zones_of_a_region_the_cheapest_with_a_real_price_counts(tmp_path: Path) -> None:
    spots = ("0.4", "0.0", "0.3", "")
    rows = [
        f"g6.xlarge,L4,1.0,4.0,16.0,,0.8,{spot},us-east-1,us-east-1{zone}"
        for zone, spot in zip("abcd", spots, strict=True)
    ]
    write_catalog(tmp_path, "aws", *rows)
    offers, _ = catalog_offers(tmp_path)
    assert [(each.spot, each.price) for each in offers] == [(False, 0.8), (True, 0.3)]


def test_hosts_without_a_gpu_or_with_a_part_of_one_are_no_offers_and_unknown_gpus_are_named(tmp_path: Path) -> None:
    rows = [
        "m6i.large,,,2.0,8.0,,0.096,0.03,us-east-1,us-east-1a",
        "g6f.large,L4,0.125,2.0,8.0,,0.2,0.1,us-east-1,us-east-1a",
        "inf2.xlarge,Inferentia2,1.0,4.0,16.0,,0.75,0.2,us-east-1,us-east-1a",
    ]
    write_catalog(tmp_path, "aws", *rows)
    offers, notes = catalog_offers(tmp_path)
    assert offers == []
    assert len(notes) == 1
    assert "Inferentia2" in notes[0]


def test_google_is_paid_for_the_gpu_and_for_its_host(tmp_path: Path) -> None:
    write_catalog(tmp_path, "gcp", *GOOGLE)
    offers, _ = catalog_offers(tmp_path)
    found = {(each.instance, each.count, each.spot): round(each.price or 0, 4) for each in offers}
    assert found == {
        ("g2-standard-4", 1, False): 0.71,
        ("g2-standard-4", 1, True): 0.27,
        ("n1-highmem-4", 1, False): 0.36,
        ("n1-highmem-4", 1, True): 0.15,
        ("a2-highgpu-2g", 2, False): 7.3,
        ("a2-highgpu-2g", 2, True): 2.4,
    }


def test_without_catalogs_a_line_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    offers, notes = all_offers(None)
    assert offers == []
    assert len(notes) == 1
    assert "yoloyard[cloud]" in notes[0]


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b'InstanceType,"\n'])
def test_a_corrupt_catalog_is_named_and_the_others_count(tmp_path: Path, content: bytes) -> None:
    write_catalog(tmp_path, "aws", "g6.xlarge,L4,1.0,4.0,16.0,,0.8048,,us-east-1,us-east-1a")
    (tmp_path / "lambda").mkdir()
    (tmp_path / "lambda" / "vms.csv").write_bytes(content)
    offers, notes = catalog_offers(tmp_path)
    assert len(offers) == 1
    assert len(notes) == 1
    assert str(tmp_path / "lambda" / "vms.csv") in notes[0]


def test_ones_own_list_stands_beside_the_catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write_catalog(catalog_folder(), "aws", "g6.xlarge,L4,1.0,4.0,16.0,,0.8048,,us-east-1,us-east-1a")
    (tmp_path / "yoloyard").mkdir()
    (tmp_path / "yoloyard" / "prices.csv").write_text("provider,gpu,price\nautodl,RTX 4090,0.3\n")
    (tmp_path / "given.csv").write_text("provider,gpu,price\ncompany,T4,0.1\n")
    assert [each.provider for each in all_offers(None)[0]] == ["aws", "autodl"]
    assert [each.provider for each in all_offers(tmp_path / "given.csv")[0]] == ["aws", "company"]


def test_a_price_that_is_missing_zero_or_negative_is_said_to_be_so_and_not_used() -> None:
    odd = [offer("L4", price) for price in (None, 0.0, -1.0)]
    assert doubts(*odd) == [("price missing",), ("price is zero",), ("price is negative",)]
    assert not any(map(is_usable, odd))


def test_a_price_is_compared_with_those_of_the_same_gpu() -> None:
    usual = [offer("L4", price) for price in (0.7, 0.8, 0.9)]
    assert doubts(*usual, offer("L4", 0.08))[3] == ("0.11 times the usual price of this GPU ($0.75 an hour)",)
    assert doubts(*usual, offer("L4", 8.0))[3] == ("9.4 times the usual price of this GPU ($0.85 an hour)",)
    assert doubts(*usual, offer("L4", 6.4, count=8))[3] == ()
    assert doubts(*usual, offer("L4", 0.25, spot=True))[3] == ()
    assert doubts(offer("L4", 0.8), offer("L4", 0.01)) == [(), ()]  # which of two is odd?


def test_a_price_older_than_30_days_or_without_a_date_is_said_to_be_so() -> None:
    dates = ["2026-10-31", "2026-10-30", None, "2027-01-01"]
    aged = [dataclasses.replace(offer("L4", 0.8), dated=each) for each in dates]
    expected = [(), ("price is 31 days old",), ("price has no date",), ("price is dated in the future, 2027-01-01",)]
    assert doubts(*aged) == expected
