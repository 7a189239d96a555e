"""The failure zoo: each broken run raises the alert that names its cause, and a healthy run raises none.

The thresholds were chosen on other seeds.
"""

from pathlib import Path

import pytest
from zoo_cases import BROKEN, HEALTHY, Case

from commands import alerts_in

SEED = 11
QUICK = ("a label of 1e6 px", "NaN after a user's transform", "empty labels", "a tiny validation set", "all frozen")


def case_of(case: Case) -> object:
    """A case as a parameter; what trains for seconds is slow."""
    return pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize("case", [case_of(case) for case in BROKEN])
def test_a_broken_run_is_recognised(case: Case, tmp_path: Path) -> None:
    found = case.run(tmp_path, SEED)
    assert case.is_met(found), (found.kinds, found.error, found.lines[-20:])
    for alert in found.alerts:
        assert alert.message
        assert alert.evidence
        assert alert.remedy
        assert any(alert.line in line for line in found.lines)
    assert [line["alert"] for line in alerts_in(found.folder)] == found.kinds


@pytest.mark.slow
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_run_raises_no_alert(case: Case, tmp_path: Path) -> None:
    found = case.run(tmp_path, SEED)
    assert case.is_met(found), [alert.line for alert in found.alerts] or found.error
