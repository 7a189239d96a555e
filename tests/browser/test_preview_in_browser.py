"""The page of `yoloyard data preview` in headless Chromium, opened as a file."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from commands import exit_code
from screenshots import screenshots
from yoloyard.demo.write import write_demo

LINE = ("--preset", "inspection", "--light", "0.3", "--noise", "0.02", "--belt-blur", "4")


def as_is(path: Path) -> None:
    """A colour image of 8 bits, as it was drawn."""


def deep(path: Path) -> None:
    grey = np.array(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).astype(np.uint16)
    cv2.imwrite(str(path.with_suffix(".png")), grey * 14 + 64)
    path.unlink()


def lights(path: Path) -> None:
    for light, name in enumerate(("_dark", "_side")):
        cv2.imwrite(str(path.with_name(f"{path.stem}{name}.png")), np.array(cv2.imread(str(path)))[..., light])
    label = path.parents[2] / "labels" / path.parent.name / f"{path.stem}.txt"
    label.rename(label.with_stem(f"{path.stem}_dark"))
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "keys", "flags", "seen", "size"),
    [
        ("demo", as_is, "", ["--imgsz", "96"], "96x96", "96 pixels, RGB of 8 bits"),
        ("tiled", as_is, "", ["--tile", "128", "--imgsz", "96"], "96x96", "96 pixels, RGB of 8 bits"),
        (
            "grey16",
            deep,
            "channels: 1\nwindow: [64, 4095]\n",
            ["--imgsz", "96"],
            "96x96",
            "1 channel of 16 bits, window 64 to 4095",
        ),
        ("lights", lights, "files: [_dark, _side]\n", ["--imgsz", "64x160"], "64x160", "from each of _dark, _side"),
    ],
)
def test_a_browser_shows_the_page_of_a_preview_without_any_other_file(
    browser: webdriver.Chrome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[Path], None],
    keys: str,
    flags: list[str],
    seen: str,
    size: str,
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = write_demo(tmp_path / "line", seed=3, train=6, val=2, size=320)
    for path in sorted(tmp_path.glob("line/images/*/*.jpg")):
        change(path)
    data.write_text(data.read_text() + keys)
    assert exit_code("data", "preview", data, *flags, *LINE) == 0

    browser.get((tmp_path / "runs" / "preview" / "preview.html").as_uri())

    assert browser.find_element(By.TAG_NAME, "h1").text == "Preview of line/data.yaml"
    assert [each.text for each in browser.find_elements(By.TAG_NAME, "h2")] == ["Summary", "Sizes of boxes", "Samples"]
    assert browser.find_element(By.CSS_SELECTOR, ".tile b").text == seen
    assert any(size in each.text for each in browser.find_elements(By.TAG_NAME, "dd"))
    images = browser.find_elements(By.TAG_NAME, "img")
    captions = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".strip figcaption")]
    alone = ["mosaic", "copy_paste", "position", "colours", "flips", "light", "noise", "belt_blur"]
    assert captions == alone * (len(images) // (2 + len(alone)))
    browser.execute_script("for (const each of document.images) each.loading = 'eager'")
    shown = "return [...document.images].every(each => each.complete && each.naturalWidth)"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(shown))
    screenshots(browser, f"preview_{name}")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
