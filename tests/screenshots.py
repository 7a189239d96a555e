"""Screenshots of a page for a person to look at, in build/."""

from pathlib import Path

from selenium import webdriver

SCREENSHOTS = Path(__file__).parents[1] / "build"


def screenshots(browser: webdriver.Chrome, page: str) -> None:
    """The page, light and dark, wide and narrow; nothing reaches over its edges."""
    SCREENSHOTS.mkdir(exist_ok=True)
    for colours in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": colours}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        for width in (1280, 400):
            size = {"width": width, "height": 1800, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.save_screenshot(str(SCREENSHOTS / f"{page}_{colours}_{width}.png"))
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
