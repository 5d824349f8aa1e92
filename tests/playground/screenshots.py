"""The pictures of docs/playground.md: ``python -m tests.playground.screenshots``."""

import tempfile
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.server.served import Served, demo_settings

from .browser import Playground, chromium

OUT = Path(__file__).parents[2] / "docs" / "playground"
PROMPT = "Write a short, polite review of the compact kettle."
SETTINGS = {"prompt": PROMPT, "max_tokens": 160, "seed": 11}
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 12}
WEIGHED = {"rewards": {"sentiment": 0.8, "brevity": 0.2}, "kl_budget": 6}


def main() -> None:
    """Serves the demo, and takes the pictures."""
    OUT.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(demo_settings(), Path(folder)) as server,
        chromium(Path(folder, "profile")) as browser,
    ):
        page = Playground(browser, server.base_url)
        page.open(BLOCKWISE, **SETTINGS)
        page.run()  # the first one pays for what is loaded once

        page.resize(1280, 900)
        page.open({**BLOCKWISE, **WEIGHED}, **SETTINGS)
        page.run()
        page.all("#lane-a .decision summary")[1].click()
        save(page, "decision.png")

        page.open({"method": "blockwise_cd", "k": 8, "m": 2}, **SETTINGS)
        page.one("#run").click()
        page.until(lambda: page.all("#lane-a .decision"))[0].click()
        page.until(lambda: len(page.all("#lane-a .decision")) > 5)
        save(page, "live.png")
        page.press(Keys.ESCAPE)

        page.resize(1280, 1240)
        page.scheme("dark")
        page.open({"method": "best_of_n", "n": 8}, BLOCKWISE, **SETTINGS)
        page.one("#run").click()
        page.wait("done", "a")
        page.wait("done", "b")
        save(page, "compare.png")

        page.scheme("light")
        page.resize(390, 844, mobile=True)
        page.open(BLOCKWISE, **SETTINGS)
        page.run()
        page.all("#lane-a .decision summary")[0].click()
        page.js("document.querySelector('#lane-a .result').scrollIntoView()")
        save(page, "phone.png")


def save(page: Playground, name: str) -> None:
    """Saves what is seen, with nothing in focus."""
    page.js("document.activeElement.blur()")
    page.browser.save_screenshot(str(OUT / name))


if __name__ == "__main__":
    main()
