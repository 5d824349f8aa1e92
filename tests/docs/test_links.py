"""Links lead somewhere, and the files, modules and commands that pages name exist."""

import re
from functools import cache
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT
from .modules import exists

LINK = re.compile(r"\]\(([^)\s]+)\)")
IMAGE = re.compile(r'src="([^"]+)"')
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
FOLDERS = ("cdserve", "value_heads", "tests", "benchmarks", "deploy", "docs", "examples")
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*|[\w-]+(?:/[\w-]+)*/[\w-]+\.py")
MODULE = re.compile(rf"(?:{'|'.join(FOLDERS)})(?:\.[A-Za-z_]\w*)+")
CURRENT = [page for page in PAGES if page.name != "log.md"]  # the log names files of its time
SOURCES = [ROOT, ROOT / "cdserve"]
SETTINGS_FILES = {"cdserve.yaml"}


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_images_have_existing_targets(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in [*LINK.findall(text), *IMAGE.findall(text)]:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_index_links_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in LINK.findall(index.read_text())
    }
    assert {page for page in PAGES if page != index} <= named


def inline_code(page: Path) -> list[str]:
    """The page's code spans outside fenced blocks, each on one line."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in INLINE.findall(text)]


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_modules_in_code_spans_exist(page: Path) -> None:
    missing = []
    for span in inline_code(page):
        path = span.partition(":")[0]
        if PATH.fullmatch(path) and not any((folder / path).exists() for folder in SOURCES):
            missing.append(span)
        dotted = re.sub(r"\(.*", "", span.partition(":")[0])
        if MODULE.fullmatch(dotted) and dotted not in SETTINGS_FILES and not exists(dotted):
            missing.append(span)
    assert missing == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_modules_and_tests_of_commands_in_code_spans_exist(page: Path) -> None:
    missing = []
    for span in inline_code(page):
        match span.split():
            case ["python", "-m", module, *_] if module.startswith(FOLDERS):
                found = exists(module)
            case ["python" | "pytest", path, *_] if not path.startswith("-"):
                found = (ROOT / path).exists()
            case _:
                continue
        if not found:
            missing.append(span)
    assert missing == []


@pytest.mark.parametrize(
    "dotted",
    [
        "cdserve",
        "cdserve.kl",
        "cdserve.errors.PolicyError",
        "cdserve.decoders.SelectionRule",
        "tests.v2",
    ],
)
def test_packages_modules_and_defined_names_exist(dotted: str) -> None:
    assert exists(dotted)
    assert not exists(f"{dotted}.nothing")
