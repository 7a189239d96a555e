"""Addresses of stores: which there are, what is wrong with others, and where credentials come from."""

import sys
from pathlib import Path
from typing import Any

import pytest

from object_store import BUCKET, CREDENTIALS, Proxy, Request
from yoloyard.common.errors import UsageError, UserError
from yoloyard.storage.address import check_address, is_address, open_store, reason
from yoloyard.storage.copies import Copies
from yoloyard.storage.fetch import fetch_run, local_weights


def test_what_is_an_address_and_what_a_path() -> None:
    assert all(map(is_address, ("s3://b/p", "gs://b", "az://c/p", "file:///mnt/x")))
    assert not any(
        map(is_address, ("runs/line", "/mnt/x", "rtsp://camera/1", "s3:/b/p", "C:/s3", None, Path("s3://b")))
    )


@pytest.mark.parametrize("address", ["s3://", "s3:///b", "ftp://host/x", "runs/copies", "file://mnt/x", "file:///"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(UsageError, match="this address of a store can't be used: it must be s3://bucket/prefix"):
        check_address(address)


def test_an_endpoint_is_a_whole_address() -> None:
    with pytest.raises(UsageError, match="this endpoint of a store can't be used"):
        check_address("s3://b/p", "minio:9000")


@pytest.mark.parametrize("address", ["s3://b/run#2", "file:///mnt/user@host/run 1"])
def test_other_signs_are_part_of_a_name(address: str, tmp_path: Path) -> None:
    check_address(address)


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("s3://AKIA:hush@b/p", None),
        ("az://c/p?sig=hush", None),
        ("s3://b/p", "https://user:hush@minio:9000"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str, endpoint: str | None) -> None:
    with pytest.raises(UsageError, match="no user, password or signature") as refused:
        check_address(address, endpoint)
    assert "hush" not in str(refused.value)


def test_without_the_extra_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    for use in (open_store, local_weights, lambda it: fetch_run(it, None, Path()), Copies):
        with pytest.raises(UsageError, match=r"pip install yoloyard\[backup\]"):
            use("s3://b/p")


@pytest.mark.parametrize(("path", "create"), [("none", False), ("none/copies", True)])
def test_a_folder_that_is_missing_is_named(path: str, create: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/none: correct the address"):
        open_store(f"file://{tmp_path}/{path}", create=create)


def test_services_that_want_the_bucket_in_the_host_get_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)

    def options(endpoint: str) -> Any:
        return open_store("s3://b/p", endpoint).config  # type: ignore[union-attr]

    oss = options("https://oss-cn-hangzhou.aliyuncs.com")
    assert (oss["endpoint"], oss["virtual_hosted_style_request"]) == ("https://b.oss-cn-hangzhou.aliyuncs.com", "true")
    assert options("https://b.cos.ap-guangzhou.myqcloud.com")["endpoint"] == "https://b.cos.ap-guangzhou.myqcloud.com"
    assert options("http://minio:9000/")["endpoint"] == "http://minio:9000"


def test_the_other_clouds_have_stores_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert type(open_store("gs://b/p")).__name__ == "GCSStore"
    assert type(open_store("az://c/p")).__name__ == "AzureStore"


def test_a_profile_gives_credentials(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = KEYOFTHELAB\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    seen: list[str] = []
    proxy.fault = lambda request: seen.append(request.headers["Authorization"])
    assert Copies(f"s3://{BUCKET}/p").read("x") is None
    assert "Credential=KEYOFTHELAB/" in seen[0]


def test_no_credentials_at_all_are_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no credentials are found .*; set AWS_ACCESS_KEY_ID"):
        open_store("s3://b/p")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "InvalidAccessKeyId", "the store refuses these credentials (InvalidAccessKeyId)"),
        (403, "RequestTimeTooSkewed", "the clock of this host is too far from the server's"),
        (404, "NoSuchBucket", "there is no such bucket"),
        (409, "Oddity", "the store answers 409 Conflict Oddity"),
    ],
)
def test_an_answer_becomes_a_line_without_credentials(proxy: Proxy, status: int, code: str, said: str) -> None:
    def fault(request: Request) -> tuple[int, str]:
        return status, code

    proxy.fault = fault
    copies = Copies(f"s3://{BUCKET}/p")
    with pytest.raises(Exception, match=code) as refused:
        copies.download("x", Path("/dev/null"))
    assert said in reason(refused.value)
    assert not any(secret in reason(refused.value) for secret in CREDENTIALS.values())
