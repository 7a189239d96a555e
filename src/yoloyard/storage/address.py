"""Addresses of object stores (s3://bucket/prefix, gs://, az://, file:///folder) and the stores behind them, by obstore.

Credentials come from where each cloud's own tools look for them: environment, profiles, instance roles. None stands in
an address, and none in a message of this file.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from yoloyard.common.errors import UsageError, UserError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

ADDRESS = re.compile(r"(s3|gs|az)://[^/@?]+(/[^@?]*)?|file:///.*[^/].*")
ENDPOINT = re.compile(r"https?://[^@?]*")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the variables, the first that is set counts
BUCKET_IN_HOST = (".aliyuncs.com", ".myqcloud.com")  # services that want the bucket in the host's name
# A request may take so long: a part of 8 MB, four at a time, at 1.4 Mbit/s.
CLIENT = {"timeout": timedelta(seconds=180), "connect_timeout": timedelta(seconds=10)}
RETRIES = {"max_retries": 10, "retry_timeout": timedelta(seconds=60)}

REASONS = {
    "NoSuchBucket": "there is no such bucket: make it, or correct the address",
    "ContainerNotFound": "there is no such container: make it, or correct the address",
    "RequestTimeTooSkewed": "the clock of this host is too far from the server's: set it (chrony, ntpd, timedatectl)",
    "PermanentRedirect": "the bucket is in another region: name it by AWS_REGION",
}
REFUSED = (
    "the store refuses these credentials ({}): give others in the environment, a profile or a role, as its own tools "
    "take them, with the right to list, read, write and remove"
)


def is_address(text: object) -> bool:
    """Is this the address of an object store and not a path?"""
    return isinstance(text, str) and text.startswith(("s3://", "gs://", "az://", "file://"))


def check_address(address: str, endpoint: str | None = None) -> None:
    """Raise UsageError if this can't be an address, holds credentials, or needs a package that isn't installed."""
    for text, form, name in ((address, ADDRESS, "address"), (endpoint or "https://", ENDPOINT, "endpoint")):
        if not form.fullmatch(text):  # what is wrong in it may be a secret: it isn't repeated
            raise UsageError(
                f"this {name} of a store can't be used: it must be s3://bucket/prefix, gs://bucket/prefix, "
                "az://container/prefix or file:///folder, an endpoint https://host, and hold no user, password or "
                "signature (@ and ?): credentials come from the environment, profiles and roles"
            )
    if importlib.util.find_spec("obstore") is None:
        raise UsageError("addresses of stores need a package that is not installed: pip install yoloyard[backup]")


def open_store(address: str, endpoint: str | None = None, create: bool = False) -> "ObjectStore":
    """The store below `address`; nothing is asked of a server yet. `create` makes the last folder of a file://.

    `endpoint` is that of an S3-compatible service; without it AWS_ENDPOINT_URL counts. Raises UsageError or UserError.
    """
    check_address(address, endpoint)
    import obstore.store as stores

    scheme, _, place = address.partition("://")
    bucket, _, prefix = place.partition("/")
    common: dict[str, Any] = {"client_options": CLIENT, "retry_config": RETRIES, "prefix": prefix.strip("/") or None}
    with reasons_said(address):
        if scheme == "file":
            folder = Path(unquote(place))
            needed = folder.parent if create else folder
            if not needed.is_dir():
                raise UserError(f"{address}: there is no folder {needed}: correct the address, or mount its disk")
            if create:
                folder.mkdir(exist_ok=True)
            return stores.LocalStore(folder)
        if scheme == "gs":
            return stores.GCSStore(bucket, **common)
        if scheme == "az":
            return stores.AzureStore(bucket, **common)
        options = _s3_options(bucket, endpoint)
        common["client_options"] = CLIENT | {"allow_http": str(options.get("endpoint")).startswith("http://")}
        return stores.S3Store(bucket, **common, **options)


@contextlib.contextmanager
def reasons_said(what: str) -> Iterator[None]:
    """Within the context, what a store raises becomes a UserError with `what` and the reason."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise UserError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a request failed, in a line without credentials: what a server answers may hold parts of a signed request."""
    text = str(error).partition("Debug source")[0]
    code = found[1] if (found := re.search(r"<Code>(\w+)</Code>", text)) else ""
    status = " ".join(found[1].split()) if (found := re.search(r"status code: (\d{3}[ A-Za-z]*)", text)) else ""
    if code in REASONS:
        return REASONS[code]
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        return REFUSED.format(code or status or "no reason given")
    if "error sending request" in text or "timed out" in text:
        return "the server can't be reached, or the connection was cut"
    if code or status:
        return f"the store answers {status} {code}".strip()
    return re.sub(r"\?\S+", "", re.sub(r"//\S+@", "//", text.strip().partition("\n")[0]))[:300] or type(error).__name__


def _s3_options(bucket: str, endpoint: str | None) -> dict[str, Any]:
    """Endpoint and credentials of a bucket. Raises UserError if no credentials are found."""
    options: dict[str, Any] = {}
    endpoint = endpoint or next(filter(None, map(os.environ.get, ENDPOINTS)), None)
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.netloc.endswith(BUCKET_IN_HOST):
            host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
            endpoint, options["virtual_hosted_style_request"] = parts._replace(netloc=host).geturl(), True
        options["endpoint"] = endpoint.rstrip("/")
    if "AWS_ACCESS_KEY_ID" in os.environ or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return options
    import boto3  # obstore itself reads no profiles
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return options | {"credential_provider": Boto3CredentialProvider(boto3.Session())}
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"s3://{bucket}: no credentials are found ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE"
        ) from error
