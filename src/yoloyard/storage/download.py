"""One file over HTTP, gone on with where it was cut. Proxies come from the environment, as other programs take them."""

import contextlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO

from yoloyard.common.errors import UserError, printable
from yoloyard.common.files import cannot_write
from yoloyard.common.log import bytes_text

READ_SECONDS = 30.0  # that a server may be silent; all together may take any time
CONNECTIONS = 5  # that are cut, one after the other, before it is given up
CHUNK_BYTES = 2**18

Show = Callable[[int, int | None], object]  # gets the bytes that are here, and all, None where the server doesn't say


class FetchError(UserError):
    """The server can't be reached, doesn't give the file, or ends too early."""


class CutError(FetchError):
    """The connection failed; another one may not."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith(("https://", f"{req.type}://")):  # http only from http, as the user has named it
            raise FetchError(f"{req.full_url} leads to {newurl.partition('?')[0]}, not to https: it isn't followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(address: str, part: Path, show: Show) -> None:
    """Fill the file `part` with the content of `address`; what is in it of the same content is not fetched again.

    Whether it is the same the server says, by the ETag or the date that it gave before; they are kept beside `part`.
    Raises FetchError, with `part` left for another time, and UserError if it can't be written; then it is removed.
    """
    for connection in range(1, CONNECTIONS + 1):
        before = _size(part)
        try:
            with _network(address):
                answer = _ask(address, part)
            with answer:
                _receive(answer, address, part, show)
            return
        except CutError as error:
            if connection == CONNECTIONS or _size(part) <= before:  # nothing came: it is not worth another
                kept = f"; {bytes_text(_size(part))} are here, and the same command goes on from there"
                raise FetchError(f"{error}{kept if _validator(part, address) and _size(part) else ''}") from error
        except OSError as error:
            forget(part)
            raise cannot_write(part, error) from error


def forget(part: Path) -> None:
    """Remove what was fetched of a file."""
    for each in (part, _note(part)):
        each.unlink(missing_ok=True)


def _ask(address: str, part: Path) -> HTTPResponse:
    """The server's answer to a request for the file, or for what `part` lacks."""
    headers, validator = {"User-Agent": "yoloyard"}, _validator(part, address)
    if _size(part) and validator:
        headers |= {"Range": f"bytes={_size(part)}-", "If-Range": validator}
    try:
        request = urllib.request.Request(address, headers=headers)
        answer: HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=READ_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or "Range" not in headers:
            raise _answer_error(address, error.code, str(error.reason)) from error
    else:
        is_same = validator in (_validators(answer) or [validator])
        goes_on = _content_range(answer)[:1] == (_size(part),) and is_same
        if answer.status == http.HTTPStatus.OK or ("Range" in headers and goes_on):
            return answer
        answer.close()
        if "Range" not in headers:
            raise _answer_error(address, answer.status, answer.reason)
    forget(part)  # of another file, or the server counts otherwise
    return _ask(address, part)


def _answer_error(address: str, code: int, reason: str) -> FetchError:
    return FetchError(f"{address}: the server answers {code} {printable(' '.join(reason.split()))}")


def _receive(answer: HTTPResponse, address: str, part: Path, show: Show) -> None:
    """Write what comes to `part`, at its end if the server goes on there."""
    done, total = _content_range(answer) or (0, answer.length)
    with part.open("ab" if done else "wb") as file:
        if not done:
            _note(part).write_text("\n".join([address, *_validators(answer)[:1]]), encoding="utf-8")
        while True:
            show(done, total)
            with _network(address):
                chunk = answer.read1(CHUNK_BYTES)
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
    if total is not None and done != total:
        raise CutError(f"{address}: the connection was cut after {bytes_text(done)} of {bytes_text(total)}")


def _content_range(answer: HTTPResponse) -> tuple[int, int] | tuple[()]:
    """Where the part in an answer begins, and the length of the whole file in bytes; nothing if it is no part."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    return (int(found[1]), int(found[2])) if found and answer.status == http.HTTPStatus.PARTIAL_CONTENT else ()


def _validators(answer: HTTPResponse) -> list[str]:
    """ETag and date by which the content can be told from another, the best first."""
    etag, date = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
    return [each for each in (etag, date) if each and not each.startswith("W/")]  # a weak one may stand for other bytes


@contextlib.contextmanager
def _network(address: str) -> Iterator[None]:
    """Within the context, what the network raises becomes a CutError."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last one of an address that is none
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = getattr(why, "strerror", None) or printable(str(why)) or type(why).__name__
        raise CutError(f"{address} can't be fetched ({reason})") from error


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.from")


def _validator(part: Path, address: str) -> str:
    """The ETag or date of what is in `part`; empty if there is none, or `part` came from another address."""
    try:
        came_from, _, validator = _note(part).read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return ""
    return validator if came_from == address else ""


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
