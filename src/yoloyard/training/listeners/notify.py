"""`--notify URL`: alerts and the end of a run, sent to a chat or to a server of the user's own.

The address often holds a secret. It is kept in no file and shown in no line; only its host is.
"""

import html
import http.client
import json
import logging
import platform
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from yoloyard.common.errors import UsageError
from yoloyard.common.log import ONCE
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event
from yoloyard.training.listeners.status import ending

log = logging.getLogger(__name__)

ADDRESS = r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d+)?([/?][!-~]*)?"
# By host: the entry of an answer of status 200 that is 0 if the message was taken.
CODES = {
    "open.feishu.cn": "code", "open.larksuite.com": "code",
    "oapi.dingtalk.com": "errcode", "qyapi.weixin.qq.com": "errcode",
}  # fmt: skip
MOST_ALERTS = 15  # in an hour, and none of them twice: DingTalk and WeCom take 20 messages a minute
RETRY_SECONDS = (1.0, 5.0, 25.0)  # pauses before a message is tried again
ANSWER_SECONDS = 10.0  # that a server may be silent
END_SECONDS = 5.0  # that the end of a run waits for its messages
MAX_CHAT_BYTES = 1900  # WeCom takes 2048


class Notifier:
    """A listener that sends each message in a thread, so that a server which is slow or down never slows the run.

    Raises UsageError if `address` is no address.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(ADDRESS, address, re.ASCII | re.IGNORECASE):
            raise UsageError("--notify must be an address such as https://hooks.slack.com/services/...")
        self._address, self._host = address, str(urlsplit(address).hostname)
        self._run: dict[str, Any] = {}  # of a run that has begun
        self._alerts: dict[str, float] = {}  # those of the last hour, and when they came
        self._threads: list[threading.Thread] = []
        self._is_over = False
        self._problem = ""  # of the last attempt

    def __call__(self, event: Event) -> None:
        """Send a message where the event is worth one. From the end of the run on, wait for it a few seconds."""
        match event:
            case events.RunStarted():
                self._run = {"run": event.folder.name, "folder": str(event.folder), "host": platform.node()}
            case events.AlertRaised() if self._run and self._is_news(event.line):
                said = {"kind": event.kind, "evidence": event.evidence, "remedy": event.remedy}
                self._say("alert", event.message, event.line, said)
            case events.HostEnding() if self._run:
                done = "saves and goes on" if event.goes_on else "saves and ends"
                message = f"{event.signal} came, so this host may soon be lost; the run {done}"
                self._say("host-ending", message, message, {})
            case events.RunFinished() if self._run:
                state, reason = ending(event)
                text, facts = f"{state}: {reason}", {"epochs": event.epochs, "seconds": event.seconds}
                if event.result:
                    facts |= event.result.metrics.figures() | {"best_epoch": event.result.best_epoch}
                    text += f"; mAP50-95 {facts['map50_95']:.4f} in epoch {event.result.best_epoch}"
                self._is_over = True
                self._say(state, reason, text, facts)

    def _is_news(self, line: str) -> bool:
        now = time.monotonic()
        self._alerts = {each: came for each, came in self._alerts.items() if now - came < 3600}
        is_news = line not in self._alerts and len(self._alerts) < MOST_ALERTS
        self._alerts |= {line: now} if is_news else {}
        return is_news

    def _say(self, event: str, message: str, text: str, more: Mapping[str, Any]) -> None:
        facts = {**self._run, "event": event, "message": message, **more}
        text = f"yoloyard {self._run['run']} on {self._run['host']}: {text}"
        content = json.dumps(payload(self._host, text, facts)).encode()
        thread = threading.Thread(target=self._send, args=(content,), daemon=True)
        thread.start()
        self._threads = [*(each for each in self._threads if each.is_alive()), thread]
        if self._is_over:
            until = time.monotonic() + END_SECONDS
            for each in self._threads:
                each.join(max(until - time.monotonic(), 0))
            if thread.is_alive():
                log.warning(f"--notify: {self._host} {self._problem or 'is slow'}; the last message is lost")

    def _send(self, content: bytes) -> None:
        for seconds in (0.0, *RETRY_SECONDS):
            time.sleep(seconds)
            problem = self._problem = self._post(content)
            if not problem:
                break
        if problem:
            log.warning(f"--notify: {self._host} {problem}; the run does not depend on it", extra=ONCE)

    def _post(self, content: bytes) -> str:
        """Send it; what went wrong, without the address."""
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "yoloyard"}
        try:
            request = urllib.request.Request(self._address, content, headers)
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                if answer.url != self._address:
                    return "redirects, and the message is lost on the way"
                return refusal(self._host, answer.read(10_000))
        except urllib.error.HTTPError as error:
            return f"answers {error.code}"
        except (OSError, http.client.HTTPException, ValueError) as error:  # a message may hold the address
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            return f"can't be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"


def payload(host: str, text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What the server `host` takes: a chat's message with `text`; for other servers `facts` and the text.

    Slack: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
    Feishu: https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot
    DingTalk: https://open.dingtalk.com/document/robots/custom-robot-access
    WeCom: https://developer.work.weixin.qq.com/document/path/91770
    """
    short = text.encode(errors="backslashreplace")[:MAX_CHAT_BYTES].decode(errors="ignore")
    if host == "hooks.slack.com":
        return {"text": html.escape(short, quote=False)}  # it reads <...> as a link or a call to all members
    forms = {
        "code": {"msg_type": "text", "content": {"text": short}},
        "errcode": {"msgtype": "text", "text": {"content": short}},
    }
    return forms[CODES[host]] if host in CODES else facts | {"text": text}


def refusal(host: str, answer: bytes) -> str:
    """What a chat objects to in an answer of status 200; empty if the message was taken."""
    try:
        said = dict(json.loads(answer)) if host in CODES else {}
    except (ValueError, TypeError):
        return "answers what is no JSON object"
    return f"refuses the message ({' '.join(str(said).split())[:200]})" if said.get(CODES.get(host)) else ""
