"""What costs money in clouds is found and ended, whether SkyPilot remembers it or not."""

import json
from pathlib import Path

import pytest

from cloud_environment import in_cloud_environment, needs_skypilot

PROGRAM = Path(__file__).with_name("sweeping.py")


@needs_skypilot
@pytest.mark.slow
def test_orphans_are_found_at_the_provider_and_ended(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "KEYOFTHETESTS0000001", "AWS_SECRET_ACCESS_KEY": "secret"}
    said = json.loads(in_cloud_environment(tmp_path, PROGRAM, **keys).rpartition("found:")[2])
    assert said["first"] == {
        "live": ["host", "yoloyard-cracks", True, "us-east-2", 0.5],
        "orphan": ["host", "", True, "us-east-2", 0.5],
        "others": ["host", "", False, "us-east-2", 0.5],
        "disk": ["disk", "", True, "us-east-2", None],
        "group": ["security group", "yoloyard-cracks", True, "us-east-2", 0.0],
    }, "and nothing that is not ours"
    assert said["failures"] == [
        "kubectl: the server does not answer (skipped)",
        "vast: not asked, jobs are not started there",
    ], "a provider that fails is said and skipped"
    assert said["left"] == ["others"], "what others have launched is not ended unasked"
    assert said["running"] == ["foreign", "others"]
