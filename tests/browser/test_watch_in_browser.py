"""The page of `yoloyard watch` in headless Chromium, beside a run that goes on, is killed, and is watched no more."""

import contextlib
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from commands import TINY, start
from yoloyard.demo.write import write_demo

SCREENSHOT = Path(__file__).parents[2] / "build" / "watch.png"


@pytest.mark.slow
def test_a_browser_shows_a_run_while_it_goes_on(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_demo(tmp_path / "line", seed=3, train=14, val=6, size=96)
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def tile(name: str) -> str:
        tiles = browser.find_elements(By.CSS_SELECTOR, ".tile")
        return next(each.text for each in tiles if each.text.startswith(name))

    def comes(condition: Any) -> None:
        WebDriverWait(browser, 60, ignored_exceptions=[Exception]).until(lambda _: condition())

    with contextlib.ExitStack() as processes:
        run = processes.enter_context(start("train", "--data", data, "--epochs", 10_000, *TINY))
        processes.callback(run.kill)
        assert run.stdout is not None
        next(line for line in run.stdout if line.startswith("epoch 2/"))
        threading.Thread(target=run.stdout.read, daemon=True).start()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        watch = processes.enter_context(start("watch", "--port", port))
        processes.callback(watch.kill)
        assert watch.stdout is not None
        assert watch.stdout.readline() == f"line: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"

        browser.get(f"http://127.0.0.1:{port}/")
        assert "running" in tile("State")
        headings = [each.text for each in browser.find_elements(By.TAG_NAME, "h2")]
        assert headings == ["Now", "Curves", "Classes", "Last predictions"]
        assert len(browser.find_elements(By.CSS_SELECTOR, ".plots svg")) == 4
        images = browser.find_elements(By.TAG_NAME, "img")
        assert [browser.execute_script("return arguments[0].decode().then(() => 1)", each) for each in images] == [
            1
        ] * 3
        epoch = tile("Epoch")
        comes(lambda: tile("Epoch") != epoch)  # by itself
        browser.find_element(By.XPATH, "//button[text()='Class']").click()  # sorts, also what has come since
        comes(lambda: browser.find_element(By.CSS_SELECTOR, "th[aria-sort]"))
        SCREENSHOT.parent.mkdir(exist_ok=True)
        browser.save_screenshot(str(SCREENSHOT))
        run.kill()
        comes(lambda: "interrupted" in tile("State") and "its process is gone" in tile("State"))
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
        comes(lambda: "has ended" in browser.find_element(By.ID, "refreshed").text)
        severe = [line for line in browser.get_log("browser") if "favicon" not in line["message"]]
        assert all("ERR_CONNECTION_REFUSED" in line["message"] for line in severe)
