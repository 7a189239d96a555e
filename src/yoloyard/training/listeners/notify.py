"""`--notify URL`: alerts and the end of a run, sent to a chat or to a server of the user's own.

The address often holds a secret. It is kept in no file and shown in no line; only its host is.
"""

import contextlib
import html
import http.client
import json
import logging
import platform
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from yoloyard.common.errors import UsageError
from yoloyard.training.listeners import events
from yoloyard.training.listeners.events import Event
from yoloyard.training.listeners.status import ending

log = logging.getLogger(__name__)

SLACK = ("hooks.slack.com",)
FEISHU = ("open.feishu.cn", "open.larksuite.com")
DINGTALK_AND_WECOM = ("oapi.dingtalk.com", "qyapi.weixin.qq.com")
MESSAGES_WAITING = 100  # then the oldest is dropped
RETRY_SECONDS = (1.0, 5.0, 25.0)  # pauses before a message is tried again
ANSWER_SECONDS = 10.0  # that a server may be silent
END_SECONDS = 5.0  # that the end of a run waits for its last message
MAX_CHAT_BYTES = 1900  # WeCom takes 2048


class Notifier:
    """A listener that sends messages in a thread, so that a server which is slow or down never slows the run.

    Raises UsageError if `address` is no address.
    """

    def __init__(self, address: str) -> None:
        try:
            parts = urlsplit(address)
            is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_right = False
        if not is_right or not all("!" <= sign <= "~" for sign in address):
            raise UsageError("--notify must be an address such as https://hooks.slack.com/services/...")
        self._address, self._host = address, str(parts.hostname)
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MESSAGES_WAITING)  # None: the run is over
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Send a message where the event is worth one; wait for it a few seconds at the end of the run."""
        match event:
            case events.RunStarted():
                self._run = {"run": event.folder.name, "folder": str(event.folder), "host": platform.node()}
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()
            case events.AlertRaised() if self._thread is not None:
                said = {"kind": event.kind, "evidence": event.evidence, "remedy": event.remedy}
                self._say("alert", event.message, event.line, said)
            case events.RunFinished() if self._thread is not None:
                state, reason = ending(event)
                text, facts = f"{state}: {reason}", {"epochs": event.epochs, "seconds": event.seconds}
                if event.result:
                    facts |= event.result.metrics.figures() | {"best_epoch": event.result.best_epoch}
                    text += f"; mAP50-95 {facts['map50_95']:.4f} in epoch {event.result.best_epoch}"
                self._say(state, reason, text, facts)
                self._put(None)
                self._is_ending.set()
                self._thread.join(END_SECONDS)
                if self._thread.is_alive():
                    log.warning(f"--notify: {self._host} has not taken the last message")

    def _say(self, event: str, message: str, text: str, more: Mapping[str, Any]) -> None:
        facts = {**self._run, "event": event, "message": message, **more}
        text = f"yoloyard {self._run['run']} on {self._run['host']}: {text}"
        self._put(json.dumps(payload(self._host, text, facts)).encode())

    def _put(self, message: bytes | None) -> None:
        while True:
            try:
                return self._waiting.put_nowait(message)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._waiting.get_nowait()

    def _send_all(self) -> None:
        is_failing = False
        while (message := self._waiting.get()) is not None:
            problem = self._send(message)
            for seconds in RETRY_SECONDS:
                if problem and not self._is_ending.wait(seconds):
                    problem = self._send(message)
            if problem and not is_failing:
                log.warning(f"--notify: {self._host} {problem}; training goes on")
            is_failing = bool(problem)

    def _send(self, message: bytes) -> str:
        """Send it; what went wrong, in words without the address."""
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "yoloyard"}
        request = urllib.request.Request(self._address, message, headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return refusal(self._host, answer.read(10_000))
        except urllib.error.HTTPError as error:
            return f"answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
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
    if host in SLACK:
        return {"text": html.escape(short, quote=False)}  # it reads <...> as a link or a call to all members
    if host in FEISHU:
        return {"msg_type": "text", "content": {"text": short}}
    if host in DINGTALK_AND_WECOM:
        return {"msgtype": "text", "text": {"content": short}}
    return facts | {"text": text}


def refusal(host: str, answer: bytes) -> str:
    """What a chat objects to in an answer of status 200, in words; empty if the message was taken."""
    name = "code" if host in FEISHU else "errcode" if host in DINGTALK_AND_WECOM else ""
    try:
        said = json.loads(answer) if name else {}
    except ValueError:
        return "answers what is no JSON"
    return f"refuses the message ({' '.join(str(said).split())[:200]})" if said.get(name) else ""
