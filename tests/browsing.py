"""A headless Chromium for tests of pages: what it says on its console, what it asks the network for, how wide a page is."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


def missing() -> str:
    """Why no page can be opened, "" where one can."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install 'oche[browser]'"
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"there is no {name} on this machine"
    return ""


@dataclass(frozen=True)
class Browser:
    """A running Chromium; `driver` is selenium's."""

    driver: Any

    def show(self, address: str, width: int = 1280, theme: str = "light", height: int = 900) -> None:
        """Opens a page in a window of that width, whose user likes that theme; what was said before is forgotten."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        liked = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": liked})
        self.driver.get("about:blank")
        self.console()
        self.driver.get_log("performance")
        self.driver.get(address)
        deadline = time.monotonic() + 60
        there = "return location.protocol !== 'about:' && document.readyState === 'complete'"
        while not self.ask(there) and time.monotonic() < deadline:  # on a busy machine `get` may return before
            time.sleep(0.1)

    def ask(self, script: str, *values: object) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *values)

    def console(self) -> list[str]:
        """All that was written to the console since it was last asked for, violations of a security policy among them."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for, besides those within the page."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [address for address in asked if not address.startswith(("data:", "about:"))]

    def sideways(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.ask("return document.documentElement.scrollWidth - window.innerWidth"))

    def picture(self, height: int | None = None) -> bytes:
        """The page as PNG: the whole of it, or its first `height` pixels."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, in a new and empty folder, for the time of the context."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
