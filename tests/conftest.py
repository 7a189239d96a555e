"""What tests of several rooms use."""

import os
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from foreign import PACKAGE, Options, Part
from yoloyard.common.log import shown_lines

if TYPE_CHECKING:
    from object_store import Proxy

# Runs that are compared need equal numbers of threads, however busy the host is. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it looks for a newer version of itself on the network otherwise


@pytest.fixture
def foreign_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a pickle looks its classes up; reading it must not, so that package is empty."""
    module = types.ModuleType(PACKAGE)
    module.__dict__.update(DetectionModel=Part, Options=Options)
    for name in ("ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, PACKAGE, module)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The lines that the package logs during a test, as a command would show them."""
    lines: list[str] = []
    with shown_lines(lines.append):
        yield lines


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server."""
    from object_store import s3_server  # slow to import, and not in every environment of the tests

    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Proxy]":
    """An S3 server with an empty bucket, a proxy before it, credentials, and a client that itself tries only twice."""
    from object_store import CREDENTIALS, Proxy, make_empty
    from yoloyard.storage import address

    monkeypatch.setitem(address.RETRIES, "max_retries", 1)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    make_empty(s3_port)
    proxy = Proxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.stop()
