"""A fake cloud for all tests here, and jobs that were launched in it."""

from collections.abc import Iterator

import pytest

from cloud_office import BUCKET, Office
from fake_cloud import FakeCloud, fake_cloud


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCloud]:
    """A cloud with a bucket for backups."""
    with fake_cloud(tmp_path_factory.mktemp("cloud")) as cloud:
        cloud.client("s3").create_bucket(Bucket=BUCKET)
        yield cloud


@pytest.fixture(scope="session")
def office(cloud: FakeCloud, tmp_path_factory: pytest.TempPathFactory) -> Office:
    """Where three jobs have been launched, each on a slow machine: `line`, `hours` and `cost`, which have limits.

    At $120 an hour both limits are half a minute.
    """
    office = Office(cloud, tmp_path_factory.mktemp("office"))
    cloud.flags = "slow"
    for name, limits in (("line", {}), ("hours", {"max_hours": 30 / 3600}), ("cost", {"max_cost": 1.0})):
        office.write_job(name, **limits)
        office.run("launch", f"{name}.yaml", "--on", "aws", "--price", 120)
    return office
