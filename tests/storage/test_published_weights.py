"""Published weights files come whole, from where the user says, as the file that they were at first, or not at all."""

import dataclasses
import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weights_server import Published, cut, free_port, publishing, redirect, silent, slow, status, weights_content
from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.known_weights import KnownFile, known_files
from yoloyard.storage import download
from yoloyard.storage.fetch import local_weights, weights_name
from yoloyard.storage.published import get, place_of, source_of

CONTENT = weights_content(1)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KNOWN = known_files()["yolov9s"]  # of which no checksum is stated
STATED = dataclasses.replace(KNOWN, bytes=len(CONTENT), sha256=SHA256)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "published"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """A mirror of GitHub that has CONTENT under each name."""
    with publishing(CONTENT) as published:
        monkeypatch.setenv("YOLOYARD_MIRROR", published.address)
        yield published


def files_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("known", [KNOWN, STATED], ids=["noted", "stated"])
def test_a_file_is_fetched_once_and_its_checksum_is_noted(known: KnownFile, server: Published, cache: Path) -> None:
    shown: list[tuple[int, int | None]] = []
    path = get(known, lambda *now: shown.append(now))
    assert path == cache / "v9-s.pt"
    assert path.read_bytes() == CONTENT
    assert (shown[0], shown[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    note = json.loads((cache / "v9-s.pt.json").read_text())
    assert note == {"sha256": SHA256, "bytes": len(CONTENT), "address": known.address, "terms": known.terms}
    assert get(known) == path
    assert [asked for asked, _ in server.asked] == ["/MultimediaTechLab/YOLO/releases/download/v1.0-alpha/v9-s.pt"]
    assert files_in(cache) == ["v9-s.pt", "v9-s.pt.json"]


def test_a_download_that_was_cut_goes_on_where_it_was_and_by_itself(server: Published) -> None:
    server.answers = [cut(40_000), cut(20_000)]
    assert get(STATED).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=40000-", "bytes=60000-"]


def test_a_download_that_fails_goes_on_when_the_command_is_given_again(server: Published, cache: Path) -> None:
    server.answers = [cut(40_000), status(503)]
    with pytest.raises(UserError, match="the server answers 503"):
        get(KNOWN)
    assert not place_of(KNOWN).exists()
    server.answers = [cut(0)]
    with pytest.raises(UserError, match=r"cut after 0.0 MB of 0.1 MB; 0.0 MB are here, and the same command goes on"):
        get(KNOWN)
    assert get(KNOWN).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=40000-", "bytes=40000-", "bytes=40000-"]
    assert files_in(cache) == ["v9-s.pt", "v9-s.pt.json"]


def test_it_goes_on_by_the_date_where_the_server_has_no_strong_etag(server: Published) -> None:
    server.headers = {"ETag": 'W/"1"', "Last-Modified": "Mon, 02 Nov 2026 08:00:00 GMT"}
    server.answers = [cut(40_000)]
    assert get(STATED).read_bytes() == CONTENT
    assert server.asked[1][1]["If-Range"] == "Mon, 02 Nov 2026 08:00:00 GMT"


@pytest.mark.parametrize("lack", ["ranges", "validators", "the same file", "the right part"])
def test_it_starts_again_where_it_can_t_go_on(lack: str, server: Published) -> None:
    get_other = weights_content(2)
    server.has_ranges = lack != "ranges"
    server.headers = {"ETag": ""} if lack == "validators" else {}
    server.answers = [cut(40_000)]
    if lack == "the same file":
        server.answers.append(status(503))
        with pytest.raises(UserError):
            get(KNOWN)
        server.content = get_other
    if lack == "the right part":
        server.answers.append(
            status(206, CONTENT[3:], **{"Content-Range": f"bytes 3-{len(CONTENT) - 1}/{len(CONTENT)}"})
        )
    assert get(KNOWN).read_bytes() == server.content


def test_a_part_that_is_longer_than_the_file_starts_again(server: Published, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".v9-s.pt.part").write_bytes(bytes(len(CONTENT) + 1))
    (cache / ".v9-s.pt.part.from").write_text(f"{source_of(KNOWN)}\n{server.etag}")
    assert get(KNOWN).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_slow_server_is_waited_for(server: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "READ_SECONDS", 0.8)
    server.answers = [slow(pieces=6, seconds=0.2)]  # longer than READ_SECONDS in all
    assert get(KNOWN).read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_silent_server_is_asked_again_as_long_as_something_comes(
    server: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    server.answers = [silent(40_000), silent(40_000)]
    assert get(KNOWN).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=40000-", "bytes=80000-"]
    place_of(KNOWN).unlink()
    server.answers = [silent(0)]
    with pytest.raises(UserError, match="timed out"):
        get(KNOWN)


def test_connections_that_are_always_cut_are_given_up(server: Published) -> None:
    server.answers = [cut(1_000) for _ in range(9)]
    with pytest.raises(UserError, match="the connection was cut"):
        get(KNOWN)
    assert len(server.asked) == download.CONNECTIONS


def test_redirects_are_followed_with_the_range(server: Published) -> None:
    elsewhere = redirect(f"{server.address}/signed?key=1")
    server.answers = [elsewhere, cut(40_000), elsewhere]
    assert get(STATED).read_bytes() == CONTENT
    assert [path.startswith("/signed") for path, _ in server.asked] == [False, True, False, True]
    assert server.ranges()[-1] == "bytes=40000-"


@pytest.mark.parametrize("target", ["ftp://localhost/v9-s.pt", "file:///etc/hostname"])
def test_redirects_to_something_else_than_a_web_server_are_not_followed(target: str, server: Published) -> None:
    server.answers = [redirect(target)]
    with pytest.raises(UserError, match=f"{target}('|, not to https)"):
        get(KNOWN)


@pytest.mark.parametrize("target", ["", "http://[v9-s.pt", "http://a..b/v9-s.pt"])
def test_redirects_that_lead_nowhere_are_said_in_a_line(target: str, server: Published) -> None:
    server.answers = [redirect(target or f"{server.address}/again") for _ in range(30)]
    with pytest.raises(UserError, match=r"(can't be fetched|infinite loop)[^\n]* put it at [^\n]*v9-s\.pt$"):
        get(KNOWN)


def test_redirects_from_https_to_http_are_not_followed(
    server: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-out", files[0], "-keyout", files[1]]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    with publishing(CONTENT, files) as safe:
        monkeypatch.setenv("YOLOYARD_MIRROR", safe.address)
        with pytest.raises(UserError, match=r"(?i)can't be fetched \(.*certificate verify failed"):
            get(KNOWN)
        monkeypatch.setenv("SSL_CERT_FILE", files[0])
        safe.answers = [redirect(f"{server.address}/v9-s.pt?signature=secret")]
        with pytest.raises(UserError, match=r"not to https") as raised:
            get(KNOWN)
        assert "secret" not in str(raised.value)
        assert server.asked == []
        assert get(KNOWN).read_bytes() == CONTENT


@pytest.mark.parametrize(("code", "word"), [(404, "404 Not Found"), (403, "403 Forbidden"), (204, "204 No Content")])
def test_what_the_server_answers_is_said(code: int, word: str, server: Published, cache: Path) -> None:
    server.answers = [status(code)]
    with pytest.raises(UserError, match=f"{source_of(KNOWN)}: the server answers {word}"):
        get(KNOWN)
    assert files_in(cache) == []


@pytest.mark.parametrize("length", ["", "all of it"])
def test_a_server_that_states_no_length_is_heard_to_the_end(length: str, server: Published) -> None:
    server.answers = [status(200, CONTENT, **{"Content-Length": length})]
    assert get(KNOWN).read_bytes() == CONTENT


def test_without_a_network_it_says_which_file_to_put_where(
    cache: Path, server: Published, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("YOLOYARD_MIRROR", f"http://localhost:{free_port()}")
    with pytest.raises(UserError, match=r"can't be fetched \(Connection refused\)") as raised:
        get(KNOWN)
    place = cache / "v9-s.pt"
    assert f"bring {KNOWN.address} here by other means and put it at {place}" in str(raised.value)
    place.write_bytes(CONTENT)
    assert local_weights("yolov9s") == get(KNOWN) == place  # `get` notes what it is
    place.write_bytes(weights_content(2))
    with pytest.raises(UserError, match="from the first download"):
        local_weights("yolov9s")
    assert said == [f"yolov9s: using {place}, published by MultimediaTechLab under MIT"]


def test_proxies_of_the_environment_are_used(server: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("YOLOYARD_MIRROR", "http://mirror.invalid/github/")
    get(KNOWN)
    assert server.asked[0][0].startswith("http://mirror.invalid/github/MultimediaTechLab/")


@pytest.mark.parametrize("mirror", ["mirror.example.cn", "ftp://a.b", "https://me:secret@a.b", "https://a.b/?key=1"])
def test_a_mirror_that_is_no_address_is_refused(mirror: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOYARD_MIRROR", mirror)
    with pytest.raises(UsageError, match="YOLOYARD_MIRROR can't be used") as raised:
        get(KNOWN)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("mirror", ["http://[localhost", "http://localhost:abc", "http://a..b", "http://localhost/ö"])
def test_a_mirror_that_only_looks_like_an_address_is_said(
    mirror: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOYARD_MIRROR", mirror)
    with pytest.raises(UserError, match=r"can't be fetched \(.*YOLOYARD_MIRROR names a mirror"):
        get(KNOWN)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("page", "is no weights file: it begins with b'<!DOCTYPE html>"),
        ("length", f"has {len(CONTENT) + 1:,} bytes, and the published file {len(CONTENT):,}"),
        ("content", f"not the {SHA256} that its publisher states"),
    ],
)
def test_another_file_than_the_published_one_is_removed(
    wrong: str, reason: str, server: Published, cache: Path
) -> None:
    page = b"<!DOCTYPE html><title>Please log in</title>"
    server.content = {"page": page, "length": CONTENT + b"0", "content": weights_content(2)}[wrong]
    with pytest.raises(UserError, match="what came, and was removed,") as raised:
        get(STATED)
    assert reason in str(raised.value)
    assert f"put it at {cache / STATED.file}" in str(raised.value)
    assert files_in(cache) == []


def test_the_file_that_came_first_is_the_one_that_must_come_ever_after(server: Published, cache: Path) -> None:
    get(KNOWN).unlink()
    server.content = weights_content(2)
    with pytest.raises(UserError, match=rf"not the {SHA256} that .*/v9-s\.pt\.json has from the first download"):
        get(KNOWN)
    assert files_in(cache) == ["v9-s.pt.json"]
    (cache / "v9-s.pt.json").unlink()  # as the message says
    assert get(KNOWN).read_bytes() == server.content


def test_a_file_that_has_changed_in_the_cache_is_not_used(server: Published, cache: Path) -> None:
    path = get(KNOWN)
    path.write_bytes(CONTENT[:-1] + b"0")
    for use in (lambda: local_weights("v9-s.pt"), lambda: get(KNOWN)):
        with pytest.raises(UserError, match="remove it, and `yoloyard weights get yolov9s` fetches it again"):
            use()
    path.unlink()
    assert get(KNOWN).read_bytes() == CONTENT


def test_a_full_disk_leaves_nothing_behind(server: Published, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".v9-s.pt.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        get(KNOWN)
    assert files_in(cache) == []
    assert get(KNOWN).read_bytes() == CONTENT


def test_a_cache_that_can_t_be_written_is_said_before_anything_is_fetched(server: Published, cache: Path) -> None:
    cache.parent.write_text("a file")
    with pytest.raises(UserError, match="name another folder by YOLOYARD_CACHE"):
        get(KNOWN)
    assert server.asked == []


def test_two_at_once_fetch_a_file_once(server: Published, said: list[str]) -> None:
    first_is_slow = threading.Event()
    server.answers = [lambda handler: handler.give_all(pause=lambda: None) if first_is_slow.wait(5) else None]
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(get(KNOWN))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not said:  # the second one waits
        threading.Event().wait(0.01)
    first_is_slow.set()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in found] == [CONTENT, CONTENT]
    assert said == ["another process fetches v9-s.pt: waiting for it"]
    assert len(server.asked) == 1


def test_a_name_means_the_file_in_the_cache_unless_there_is_a_file_of_that_name(server: Published) -> None:
    assert local_weights("yolov9s") == Path("yolov9s")  # training, val and predict download nothing
    assert server.asked == []
    path = get(KNOWN)
    assert [local_weights(name) for name in ("yolov9s", "v9-s.pt", "YOLOv9s")] == [path, path, path]
    assert weights_name("yolov9s") == "v9-s.pt"
    # ultralytics publishes another network under this name; a path is a path
    for other in ("yolov9s.pt", "./v9-s.pt", "weights/v9-s.pt"):
        assert local_weights(other) == Path(other)
    Path("v9-s.pt").write_bytes(b"mine")
    assert local_weights("v9-s.pt") == Path("v9-s.pt")
    assert weights_name("v9-s.pt") == "v9-s.pt"
