"""Messages of `--notify`: their forms, and servers that hang, refuse, or are not there."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notified import SECRET, Server
from yoloyard.common.errors import DivergedError, UsageError, UserError
from yoloyard.config.settings import TrainConfig
from yoloyard.training.interrupt import Interrupted
from yoloyard.training.listeners import notify
from yoloyard.training.listeners.events import AlertRaised, HostEnding, Result, RunFinished, RunStarted
from yoloyard.training.listeners.notify import MOST_ALERTS, Notifier, payload, refusal

SETUP: Any = SimpleNamespace(config=TrainConfig())
STARTED = RunStarted(Path("runs/factory"), 0, SETUP)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(notify, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(notify, "END_SECONDS", 60)
    server = Server()
    yield server
    server.end()


def result() -> Result:
    metrics: Any = SimpleNamespace(figures=lambda: {"map50_95": 0.62134, "map50": 0.9})
    return Result(Path("runs/factory"), Path("best"), Path("report.html"), metrics, best_epoch=88)


def test_a_server_of_the_users_own_gets_alerts_and_the_end_with_its_figures(server: Server) -> None:
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(AlertRaised("no class 'dent' is found", "class never found", "AP 0 for 20 epochs", "look at its labels"))
    notifier(RunFinished(result(), 100, 7200.0))
    alert, end = sorted(server.got, key=lambda said: said["event"])  # each is sent by itself
    assert {name: alert[name] for name in ("event", "run", "kind", "message", "evidence", "remedy")} == {
        "event": "alert",
        "run": "factory",
        "kind": "class never found",
        "message": "no class 'dent' is found",
        "evidence": "AP 0 for 20 epochs",
        "remedy": "look at its labels",
    }
    assert (end["event"], end["epochs"], end["map50_95"], end["best_epoch"]) == ("finished", 100, 0.62134, 88)
    assert end["text"].endswith("mAP50-95 0.6213 in epoch 88")
    assert end["text"].startswith("yoloyard factory on ")
    assert server.paths == [f"/{SECRET}"] * 2


@pytest.mark.parametrize(("goes_on", "end"), [(True, "the run saves and goes on"), (False, "the run saves and ends")])
def test_a_host_that_may_soon_be_lost_is_told(server: Server, goes_on: bool, end: str) -> None:
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(HostEnding("SIGTERM", goes_on))
    notifier(RunFinished(None, 3, 1.0, Interrupted("stopped", 15)))
    assert sorted(each["event"] for each in server.got) == ["host-ending", "interrupted"]
    (said,) = (each["message"] for each in server.got if each["event"] == "host-ending")
    assert said == f"SIGTERM came, so this host may soon be lost; {end}"


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (Interrupted("stopped", 15), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (DivergedError("three bad steps"), "diverged"),
        (UserError("the disk is full"), "failed"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)
def test_why_a_run_ended_is_told(server: Server, error: BaseException, event: str) -> None:
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(RunFinished(None, 3, 1.0, error))
    (said,) = server.got
    assert said["event"] == event
    assert str(error) in said["message"] or event == "interrupted"


def test_each_chat_gets_its_own_form() -> None:
    forms = {
        "https://hooks.slack.com/services/T/B/x": {"text": "&lt;b&gt; &amp; c"},
        "https://open.feishu.cn/open-apis/bot/v2/hook/x": {"msg_type": "text", "content": {"text": "<b> & c"}},
        "https://open.larksuite.com/open-apis/bot/v2/hook/x": {"msg_type": "text", "content": {"text": "<b> & c"}},
        "https://oapi.dingtalk.com/robot/send?access_token=x": {"msgtype": "text", "text": {"content": "<b> & c"}},
        "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x": {"msgtype": "text", "text": {"content": "<b> & c"}},
        "https://example.org/hook": {"event": "alert", "text": "<b> & c"},
    }
    for address, form in forms.items():
        assert payload(Notifier(address)._host, "<b> & c", {"event": "alert"}) == form
    long = payload("qyapi.weixin.qq.com", "螺" * 3000, {})["text"]["content"]
    assert 0 < len(long.encode()) <= 2048
    assert set(long) == {"螺"}


def test_a_refusal_in_an_answer_of_status_200_is_understood() -> None:
    assert refusal("open.feishu.cn", b'{"code": 0, "msg": "success"}') == ""
    assert "Key Words Not Found" in refusal("open.feishu.cn", b'{"code": 19024, "msg": "Key Words Not Found"}')
    assert refusal("oapi.dingtalk.com", b'{"errcode": 0, "errmsg": "ok"}') == ""
    assert "310000" in refusal("oapi.dingtalk.com", b'{"errcode": 310000, "errmsg": "keywords not in content"}')
    assert (
        refusal("oapi.dingtalk.com", b"null")
        == refusal("open.feishu.cn", b"<html>")
        == "answers what is no JSON object"
    )
    assert refusal("example.org", b'{"code": 17}') == ""


def test_a_message_is_tried_again_also_the_last_one(server: Server, said: list[str]) -> None:
    server.answer = lambda number: 503 if number < 3 else 200
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(RunFinished(None, 1, 1.0))
    assert [each["event"] for each in server.got] == ["finished"] * 3
    assert said == []


def test_what_comes_after_the_end_is_waited_for_as_well(server: Server) -> None:
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(RunFinished(None, 1, 1.0))
    notifier(AlertRaised("the last checkpoint did not arrive", "backup"))
    assert [each["event"] for each in server.got] == ["finished", "alert"]


def test_a_storm_of_alerts_is_a_few_messages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    notifier = Notifier(server.address)
    notifier(STARTED)
    monkeypatch.setattr(notify.time, "monotonic", lambda: now)
    told = [notifier._is_news(line) for line in ["the disk is full"] * 100 + list(map(str, range(100)))]
    assert sum(told) == MOST_ALERTS
    assert told[:2] == [True, False]
    now = 3700.0
    assert notifier._is_news("the disk is full")


@pytest.mark.parametrize(
    ("status", "what"), [(500, "answers 500"), (302, "redirects, and the message is lost on the way")]
)
def test_a_server_with_errors_is_named_without_its_path(
    server: Server, said: list[str], status: int, what: str
) -> None:
    server.answer = lambda number: status
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(RunFinished(None, 1, 1.0))
    (line,) = said
    assert line.startswith(f"warning: --notify: 127.0.0.1 {what}")
    assert SECRET not in line


@pytest.mark.parametrize("address", ["{}", "http://no..host/{}"])
def test_a_server_that_is_not_there_is_named_once(server: Server, said: list[str], address: str) -> None:
    notifier = Notifier(address.format(server.address if address == "{}" else SECRET))
    server.end()
    notifier(STARTED)
    notifier(RunFinished(None, 1, 1.0))
    notifier(RunFinished(None, 1, 1.0))
    (line,) = said
    assert " can't be reached (" in line
    assert SECRET not in line


def test_a_server_that_hangs_holds_up_nothing(server: Server, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers only when all calls have come back; a call that waited for it would never do so."""
    goes_on = threading.Event()
    monkeypatch.setattr(notify, "END_SECONDS", 0.01)

    def answer(number: int) -> int:
        goes_on.wait(60)
        return 200

    server.answer = answer
    notifier = Notifier(server.address)
    notifier(STARTED)
    notifier(AlertRaised("first"))
    notifier(RunFinished(None, 1, 1.0))
    assert said == ["warning: --notify: 127.0.0.1 is slow; the last message is lost"]
    goes_on.set()
    for thread in notifier._threads:
        thread.join(60)
    assert {each["message"] for each in server.got} >= {"first"}


@pytest.mark.parametrize(
    "address", ["hooks.slack.com/{}", "ftp://host/{}", "https:///{}", "http://h:port/{}", "https://h/{} b", "{}"]
)
def test_what_is_no_address_is_refused_without_showing_it(address: str) -> None:
    with pytest.raises(UsageError, match="--notify must be an address such as https://") as caught:
        Notifier(address.format(SECRET))
    assert SECRET not in str(caught.value)
