"""One browser for all tests of the playground."""

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.server.served import Served

from .browser import Playground, chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A Chromium."""
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def page(browser: webdriver.Chrome, server: Served) -> Playground:
    """The playground on a desktop's screen, in light colours, with nothing kept of other tests."""
    return fresh(browser, server)


def fresh(browser: webdriver.Chrome, server: Served) -> Playground:
    """As ``page``."""
    page = Playground(browser, server.base_url)
    page.resize(1280, 900)
    page.scheme("light")
    page.go(f"{server.base_url}/playground/icon.svg")
    page.js("sessionStorage.clear(); localStorage.clear()")
    return page
