"""A fake cloud for all tests here, and a user's repository with a job."""

from collections.abc import Iterator

import pytest

from fake_cloud import FakeCloud, fake_cloud

BUCKET = "backups"
EPOCHS, STEPS = 12, 4  # steps of an epoch
SLOW_SECONDS = 0.7  # of a step where /etc/slow is there
NETWORK = f"""
import os, time

class Slow(Tiny):
    def forward(self, images):
        if self.training and os.path.exists("/etc/slow"):
            time.sleep({SLOW_SECONDS})
        return super().forward(images)
"""
SAVE_MINUTES = 0.05
TRAIN = {"model": "slow.py:Slow", "data": "data/data.yaml", "imgsz": 64, "batch": 6, "epochs": EPOCHS, "amp": False,
         "tensorboard": False, "device": "cpu", "workers": 0, "save_minutes": SAVE_MINUTES, "patience": 0}  # fmt: skip


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCloud]:
    """A cloud with a bucket for backups."""
    with fake_cloud(tmp_path_factory.mktemp("cloud")) as cloud:
        cloud.client("s3").create_bucket(Bucket=BUCKET)
        yield cloud
