"""What costs money in clouds is found and ended, whether SkyPilot remembers it or not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_environment import in_cloud_environment, needs_skypilot
from yoloyard.common.errors import UserError
from yoloyard.jobs import sweep

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


TIME = "2026-01-02T03:04:05Z"
# What the tools of three clouds print, cut to what is read of it.
PRINTED = {
    "gcloud compute instances list": [
        {"id": "71", "name": "yoloyard-cracks-3-1a2b-head", "zone": "https://compute/zones/us-central1-a",
         "creationTimestamp": "2026-01-02T03:04:05.678-08:00", "scheduling": {"provisioningModel": "SPOT"},
         "machineType": "https://compute/machineTypes/g2-standard-4", "labels": {"yoloyard": "yoloyard-cracks"}},
    ],
    "gcloud compute disks list": [
        {"id": "72", "name": "in-use", "zone": "z/us-central1-a", "users": ["it"], "creationTimestamp": TIME},
        {"id": "73", "name": "left", "zone": "z/us-central1-a", "creationTimestamp": TIME},
    ],
    "az vm list": [
        {"id": "/vm/1", "name": "yoloyard-cracks-3-1a2b", "location": "eastus", "tags": {"yoloyard": "yoloyard-cracks"},
         "hardwareProfile": {"vmSize": "Standard_NC4as_T4_v3"}, "priority": "Spot",
         "timeCreated": "2026-01-02T03:04:05.1234567+00:00", "resourceGroup": "YOLOYARD-CRACKS-3-1A2B-EASTUS"},
        {"id": "/vm/2", "name": "other", "location": "eastus", "tags": None},
    ],
    "kubectl get pods": {"items": [{"metadata": {
        "uid": "9f", "name": "yoloyard-cracks-3-1a2b-head", "namespace": "vision", "creationTimestamp": TIME}}]},
}  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command lines that the tools of clouds have got, in a file; they print what stands in PRINTED."""
    for tool in ("gcloud", "az", "kubectl"):
        cases = "".join(f"'{start} '*) echo '{json.dumps(said)}' ;;\n" for start, said in PRINTED.items())
        script = f'#!/bin/sh\necho "{tool} $*" >> {tmp_path}/asked\ncase "{tool} $*" in\n{cases}esac\n'
        (tmp_path / tool).write_text(script)
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sweep, "_price", lambda cloud, *facts: 1.0)
    return tmp_path / "asked"


@pytest.mark.parametrize(
    ("cloud", "found", "ended"),
    [
        ("gcp", ["host 71 us-central1", "disk 73 us-central1"],
         ["gcloud compute instances delete yoloyard-cracks-3-1a2b-head --zone=us-central1-a --quiet",
          "gcloud compute disks delete left --zone=us-central1-a --quiet"]),
        ("azure", ["host /vm/1 eastus"], ["az group delete --yes --name YOLOYARD-CRACKS-3-1A2B-EASTUS"]),
        ("kubernetes", ["host 9f vision"], ["kubectl delete pod --namespace=vision yoloyard-cracks-3-1a2b-head"]),
    ],
)  # fmt: skip
def test_other_clouds_are_asked_by_their_own_tools(asked: Path, cloud: str, found: list[str], ended: list[str]) -> None:
    rows = list(sweep.PROVIDERS[cloud]())
    assert [f"{each.kind} {each.id} {each.region}" for each in rows] == found
    assert all(each.began is not None and each.began.year == 2026 for each in rows)
    asked.unlink()
    for each in rows:
        each.end()
    assert asked.read_text().splitlines() == ended


def test_a_tool_that_is_missing_or_fails_says_so(asked: Path, tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho 'error: no context' >&2\nexit 1\n")
    with pytest.raises(UserError, match="kubectl: error: no context"):
        list(sweep.PROVIDERS["kubernetes"]())
    (tmp_path / "az").unlink()
    with pytest.raises(UserError, match="az is not installed"):
        list(sweep.PROVIDERS["azure"]())


def test_what_cannot_be_ended_is_said_and_keeps_no_other_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"1", "2"}

    def row(key: str, end: Callable[[], object]) -> sweep.Found:
        return sweep.Found("aws", "host", key, "yoloyard-cracks-1", "us-east-1", None, None, end)

    def refuse() -> None:
        raise OSError("not authorized")

    rows = [row("1", refuse), row("2", lambda: there.remove("2"))]
    monkeypatch.setitem(sweep.PROVIDERS, "aws", lambda: iter([each for each in rows if each.id in there]))
    assert [each.id for each in sweep.end(rows)] == ["1"]
