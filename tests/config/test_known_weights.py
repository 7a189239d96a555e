"""The table of published weights files makes sense, and each line of it says where it is from."""

import re
from collections import Counter

import pytest

from yoloyard.config.known_weights import find_known, known_files, table, where_to_get
from yoloyard.models import registry

FAMILIES = table()["families"].items()


@pytest.mark.parametrize(("family", "row"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_each_line_has_its_sources(family: str, row: dict[str, dict[str, dict[str, object]]]) -> None:
    stated = {name for facts in row["files"].values() for name in facts} & {"map50_95", "sha256"}
    stated |= {"address", "code"} | ({"weights"} & row.keys())
    assert row["source"].keys() == stated
    assert {*map(str, row["source"].values())} <= table()["sources"].keys()
    assert all(("sha256" in facts) == ("bytes" in facts) for facts in row["files"].values())


def test_no_source_is_left_over() -> None:
    used = {key for _, row in FAMILIES for key in row["source"].values()}
    assert used | {data["source"] for data in table()["data"].values()} == table()["sources"].keys()


def test_each_file_holds_a_model_that_can_be_built() -> None:
    assert known_files().keys() == {name for name in registry.BUILDERS if not name.endswith("-p2")}


def test_files_can_be_told_apart_and_figures_are_plausible() -> None:
    files = known_files().values()
    assert max(Counter(each.file for each in files).values()) == 1
    assert max(Counter(each.sha256 for each in files if each.sha256).values()) == 1
    for each in files:
        assert re.fullmatch(r"https://github\.com/\S+/releases/download/\S+/" + re.escape(each.file), each.address)
        assert each.map50_95 is None or 25 < each.map50_95 < 60
        assert each.sha256 is None or re.fullmatch("[0-9a-f]{64}", each.sha256)
        assert each.bytes is None or 5e6 < each.bytes < 150e6
    for group in {(each.family, each.imgsz) for each in files}:  # larger networks are better, and their files larger
        ours = [each for each in files if (each.family, each.imgsz) == group]
        for scores in ([each.map50_95 for each in ours], [each.bytes for each in ours]):
            known = [score for score in scores if score is not None]
            assert known == sorted(known)


def test_only_what_both_licences_permit_is_permissive() -> None:
    found = {each.family: (each.licence, each.is_permissive) for each in known_files().values()}
    assert {family for family, (_, is_permissive) in found.items() if is_permissive} == {"yolov9"}
    assert {licence for licence, is_permissive in found.values() if not is_permissive} == {"AGPL-3.0"}
    assert "no licence of their own for the weights" in known_files()["yolov9s"].terms


@pytest.mark.parametrize(
    ("name", "model"),
    [("yolo11n", "yolo11n"), ("YOLO11n.pt", "yolo11n"), ("v9-c.pt", "yolov9c"), ("yolov5n6.pt", "yolov5n6")],
)
def test_a_file_is_found_by_its_name_and_its_model_s(name: str, model: str) -> None:
    assert find_known(name) == known_files()[model]
    assert f"`yoloyard weights get {model}`" in where_to_get(name)


def test_where_another_file_has_the_name_of_a_model_the_known_one_is_named() -> None:
    assert find_known("yolov9s.pt") is None  # ultralytics publishes another network under this name
    assert "`yoloyard weights get yolov9s` fetches v9-s.pt, which MultimediaTechLab" in where_to_get("yolov9s.pt")


@pytest.mark.parametrize("name", ["yolov5nu.pt", "yolo11n-seg.pt", "mine.pt", "models/yolo11n.pt", ""])
def test_other_files_are_not_taken_for_one_of_them(name: str) -> None:
    assert find_known(name) is None
    assert where_to_get(name) == ""
