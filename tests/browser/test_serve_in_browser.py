"""The page of `yoloyard serve` in headless Chromium: a token, models, images that are chosen and dropped, errors."""

import base64
import contextlib
import json
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from commands import start
from screenshots import screenshots
from tiny_weights import write_tiny_weights
from yoloyard.demo.write import write_demo
from yoloyard.models.weights import read_weights, save_weights

ORIENTATION = 0x0112  # the tag of EXIF; 6: to be turned by 90 degrees to the right
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), each => each.charCodeAt(0)), data = new DataTransfer();
data.items.add(new File([bytes], arguments[1], {type: "image/jpeg"}));
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""


@pytest.mark.slow
def test_a_browser_shows_boxes_scores_time_and_errors(browser: webdriver.Chrome, tmp_path: Path) -> None:
    weights = write_tiny_weights(tmp_path)
    state, metadata = read_weights(weights)
    save_weights(weights, state, {**metadata, "names": [f"<b>{name}</b> & more" for name in metadata["names"]]})
    (tmp_path / "token").write_text("open-sesame\n")
    images = write_demo(tmp_path / "line", seed=3, train=2, val=2, size=480).parent / "images" / "train"
    image, turned, noise = sorted(images.iterdir())[0], tmp_path / "turned.jpg", tmp_path / "noise.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.open(image).convert("RGB").crop((0, 0, 480, 240)).save(turned, exif=exif)
    noise.write_bytes(np.random.default_rng(0).bytes(5000))

    def said() -> str:
        return browser.find_element(By.ID, "said").text

    def comes(condition: Callable[[], Any]) -> None:
        WebDriverWait(browser, 60).until(lambda _: condition())

    def give_token(text: str) -> None:
        browser.find_element(By.ID, "token").clear()
        browser.find_element(By.ID, "token").send_keys(text)
        browser.find_element(By.XPATH, "//button[text()='Use it']").click()

    with contextlib.ExitStack() as processes:
        files = [f"first={weights}", f"second={weights}", "--port", 0, "--token-file", tmp_path / "token"]
        server = processes.enter_context(start("serve", *files))
        processes.callback(server.kill)
        assert server.stdout is not None
        address = server.stdout.readline().split()[2]

        def answer(path: Path, model: str) -> dict[str, Any]:
            headers = {"Authorization": "Bearer open-sesame"}
            request = urllib.request.Request(f"{address}predict?model={model}", path.read_bytes(), headers)
            with urllib.request.urlopen(request) as response:
                found: dict[str, Any] = json.load(response)
            return found

        def check_boxes(path: Path, model: str) -> None:
            expected = answer(path, model)
            assert expected["detections"]
            rows = [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
                    for row in browser.find_elements(By.CSS_SELECTOR, "#rows tr")]  # fmt: skip
            assert [(name, score) for name, score, _ in rows] == [
                (each["name"], f"{each['score']:.3f}") for each in expected["detections"]
            ]
            script = "return [...document.querySelectorAll('rect')].map(r => ['x', 'y', 'width', 'height']"
            drawn = browser.execute_script(f"{script}.map(name => Number(r.getAttribute(name))))")
            for (left, top, width, height), each in zip(drawn, expected["detections"], strict=True):
                corners = (left, top, left + width, top + height)
                assert corners == pytest.approx(each["box_xyxy"], abs=1e-6)
            drawing = browser.find_element(By.ID, "drawing")
            shown = drawing.size["width"] / drawing.size["height"]
            assert shown == pytest.approx(expected["width"] / expected["height"], rel=0.02)
            assert f"{len(rows)} boxes by {model} in " in said()
            assert f" ms, sending included; {expected['width']} x {expected['height']} pixels" in said()

        browser.get(address)
        comes(lambda: browser.find_element(By.ID, "token").is_displayed())
        screenshots(browser, "serve_token")
        give_token("guessed")
        comes(lambda: said() == "the server does not take this token")
        give_token("open-sesame")
        comes(lambda: browser.find_element(By.ID, "model").is_displayed())
        assert not browser.find_element(By.ID, "token").is_displayed()
        assert [each.text for each in Select(browser.find_element(By.ID, "model")).options] == ["first", "second"]

        browser.find_element(By.ID, "file").send_keys(str(image))
        comes(lambda: said().startswith(f"{image.name}: ") and "boxes" in said())
        check_boxes(image, "first")
        screenshots(browser, "serve_boxes")

        Select(browser.find_element(By.ID, "model")).select_by_visible_text("second")
        browser.execute_script(DROP, base64.b64encode(turned.read_bytes()).decode(), turned.name)
        comes(lambda: said().startswith("turned.jpg: ") and "boxes" in said())
        check_boxes(turned, "second")
        assert "240 x 480 pixels" in said()
        screenshots(browser, "serve_turned")

        browser.find_element(By.ID, "file").send_keys(str(noise))
        comes(lambda: said().startswith("noise.jpg: 415: this is no image of a format that is taken"))
        assert not browser.find_element(By.ID, "drawing").is_displayed()
        screenshots(browser, "serve_error")

        asked = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert asked
        assert all(each.removeprefix("blob:").startswith(address) or each.startswith("data:") for each in asked), asked
        severe = [each["message"] for each in browser.get_log("browser") if each["level"] == "SEVERE"]
        assert all("status of 4" in message for message in severe), severe

        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        browser.find_element(By.ID, "file").send_keys(str(image))
        comes(lambda: said() == f"{image.name}: the server does not answer")
