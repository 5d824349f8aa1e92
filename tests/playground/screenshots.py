"""The pictures of docs/playground.md: ``python -m tests.playground.screenshots [URL]``.

The server is the demo's, started here unless the URL of a running one is given.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from selenium.webdriver.common.keys import Keys

from cdserve.demo import DEMO_DIR
from cdserve.demo.model import model_dir
from tests.server.served import Served

from .browser import Playground, chromium

OUT = Path(__file__).parents[2] / "docs" / "playground"
PROMPT = 'Write a short review of the film "Second Summer".'
SETTINGS = {"prompt": PROMPT, "max_tokens": 128, "temperature": 0.8, "seed": 7}
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 32}
WEIGHED = {"rewards": {"sentiment": 0.9, "brevity": 0.1}, "kl_budget": 6}


def main() -> None:
    """Takes the pictures."""
    OUT.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name,
        address(Path(name)) as url,
        chromium(Path(name, "profile")) as browser,
    ):
        take(Playground(browser, url))


@contextmanager
def address(folder: Path) -> Iterator[str]:
    """The URL of the server."""
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    with Served(settings(), folder) as server:
        yield server.base_url


def settings() -> dict[str, Any]:
    """The demo's settings with absolute paths."""
    content: dict[str, Any] = yaml.safe_load((DEMO_DIR / "cdserve.yaml").read_text())
    content["model"] = str(model_dir())
    sentiment = content["rewards"]["sentiment"]
    for key in ("path", "q_head"):
        sentiment[key] = str(DEMO_DIR / sentiment[key])
    return content


def take(page: Playground) -> None:
    """Takes the pictures of a server's page."""
    page.resize(1280, 1260)
    page.scheme("light")
    page.open(BLOCKWISE, {"method": "none"}, **SETTINGS)
    page.run()  # the first run is slower
    page.until(lambda: page.all("#comparison tbody tr"))
    page.one("#run").click()
    page.until(lambda: not page.all("#comparison tbody tr"))
    page.until(lambda: page.all("#comparison tbody tr"))
    page.js("document.querySelectorAll('.policy').forEach((policy) => (policy.open = false))")
    settled(page)
    save(page, "compare.png")

    page.resize(1280, 1220)
    page.open({**BLOCKWISE, **WEIGHED}, **SETTINGS)
    page.run()
    page.until(lambda: "sentiment_gold" in page.text("#lane-a .figures"))
    settled(page)
    page.all("#lane-a .block.decided")[1].click()
    settled(page)
    save(page, "decision.png")

    page.resize(1280, 870)
    page.prefers(color_scheme="dark", reduced_motion="reduce")  # a bar shows the score next to it
    page.open(BLOCKWISE, **SETTINGS)
    page.one("#run").click()
    under_way(page, block=3, tokens=20)
    save(page, "live.png")
    page.press(Keys.ESCAPE)

    page.prefers(color_scheme="light", reduced_motion="reduce")
    page.resize(390, 844, mobile=True)
    page.open(BLOCKWISE, **SETTINGS)
    page.one("#run").click()
    under_way(page, block=2, tokens=20)
    save(page, "phone.png")
    page.press(Keys.ESCAPE)


def under_way(page: Playground, block: int, tokens: int) -> None:
    """Waits until each candidate of a block has so many tokens."""
    page.until(lambda: page.text("#lane-a .race h3") == f"Block {block}", f"block {block}")
    drawn = """
      const notes = [...document.querySelectorAll("#lane-a .card .facts")];
      return notes.every((note) => parseInt(note.textContent) >= arguments[0]);
    """
    page.until(lambda: page.js(drawn, tokens), f"{tokens} tokens of each candidate")


def settled(page: Playground) -> None:
    """Waits until nothing moves."""
    page.until(lambda: not page.js("return document.getAnimations().length"), "the end of motion")


def save(page: Playground, name: str) -> None:
    """Saves what is seen, with nothing in focus."""
    page.js("document.activeElement.blur()")
    page.browser.save_screenshot(str(OUT / name))


if __name__ == "__main__":
    main()
