"""The page of an export in headless Chromium, opened as a file."""

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from yoloyard.demo.write import write_demo

SCREENSHOT = Path(__file__).parents[2] / "build" / "parity.png"


@pytest.mark.slow
def test_a_browser_shows_the_page_of_an_export_without_any_other_file(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))
    from tiny_job import tiny_job
    from yoloyard.export.parity import compare
    from yoloyard.export.programs import write_torchscript

    job = tiny_job(tmp_path, data=str(write_demo(tmp_path / "line", seed=3, train=1, val=6, size=96)))
    (tmp_path / "triton").mkdir()
    parity = compare(job, {"torchscript": write_torchscript(job), "triton": tmp_path / "triton"})

    browser.get(parity.page.as_uri())

    assert [each.text for each in browser.find_elements(By.TAG_NAME, "h2")] == ["Summary", "Files", "mAP50-95"]
    files, figures = browser.find_elements(By.TAG_NAME, "table")
    rows = [row.text.split("\n")[0] for row in files.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert ["within tolerance" in rows[0], "not run here" in rows[1]] == [True, True]
    heads = figures.find_elements(By.TAG_NAME, "button")
    assert [head.text for head in heads] == ["", "Boxes", "torch", "best.torchscript"]
    heads[1].click()  # sorts
    assert figures.find_elements(By.CSS_SELECTOR, "th[aria-sort]")
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert loaded == []
    assert browser.get_log("browser") == []
    SCREENSHOT.parent.mkdir(exist_ok=True)
    browser.save_screenshot(str(SCREENSHOT))
