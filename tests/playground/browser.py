"""A Chromium without a screen, and the playground in it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.waiting import until

T = TypeVar("T")

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A Chromium with its profile in an empty folder; the test is skipped where there is none.

    In CI (``CI`` is set) a missing one is a failure.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        reason = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Playground:
    """The page, as its user sees it.

    Args:
        browser: what shows it.
        base_url: of the server.
    """

    def __init__(self, browser: webdriver.Chrome, base_url: str) -> None:
        self.browser = browser
        self.base_url = base_url

    def open(self, *policies: Any, **settings: Any) -> None:
        """Opens a link with these policies and settings, and waits until a run can be started."""
        self.go(self.link(*policies, **settings))
        self.until(lambda: self.one("#run").is_enabled())

    def link(self, *policies: Any, **settings: Any) -> str:
        """The link of a run with these policies and settings."""
        named = {name: json.dumps(policy) for name, policy in zip("ab", policies, strict=False)}
        return f"{self.base_url}/playground#{urlencode(settings | named)}"

    def go(self, url: str) -> None:
        """Opens a URL, anew even if it differs from the last one by its fragment only."""
        self.browser.get("about:blank")
        self.browser.get(url)

    def one(self, selector: str) -> WebElement:
        """The first element of a selector."""
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements of a selector."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Text of the first element of a selector, including hidden text."""
        content: str = self.one(selector).get_property("textContent")
        return content

    def js(self, script: str, *arguments: Any) -> Any:
        """Result of a script."""
        return self.browser.execute_script(script, *arguments)

    def until(self, found: Callable[[], T], what: str = "") -> T:
        """Waits until ``found`` returns a true value."""
        return until(found, what)

    def run(self, state: str = "done", lane: str = "a") -> None:
        """Presses Run and waits until the lane's run is in the state."""
        self.one("#run").click()
        self.wait(state, lane)

    def wait(self, state: str, lane: str = "a") -> None:
        """Waits until the run of a lane is in a state, or has ended in another."""
        result = self.one(f"#lane-{lane} .result")

        def there() -> bool:
            now = result.get_attribute("data-state")
            said = self.text(f"#lane-{lane} .progress")
            assert now == state or now not in ("done", "failed", "stopped"), f"{now}: {said}"
            return now == state

        self.until(there, f"the state {state}")

    def press(self, *keys: str) -> None:
        """Presses keys together, wherever the focus is."""
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def type(self, selector: str, text: str) -> None:
        """Types into a field, in the place of what is in it."""
        element = self.one(selector)
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(text or Keys.DELETE)

    def answer(self, lane: str = "a") -> str:
        """The text of a lane's answer."""
        return self.text(f"#lane-{lane} .text")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Gives the window another size, in pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, scheme: str) -> None:
        """Has the system prefer light or dark."""
        self.prefers(color_scheme=scheme)

    def prefers(self, **preferences: str) -> None:
        """Sets preferences of the system, by the name of their media feature; resets others."""
        features = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in preferences.items()
        ]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def requested(self) -> list[str]:
        """The URLs of all that the page has loaded or asked for."""
        script = "return performance.getEntriesByType('resource').map((one) => one.name)"
        urls: list[str] = self.js(script)
        return urls

    def offline(self, offline: bool) -> None:
        """Cuts the browser off, or connects it again."""
        self.browser.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": offline, "latency": 0, "downloadThroughput": -1}
        self.browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {**conditions, "uploadThroughput": -1}
        )
