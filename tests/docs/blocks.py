"""The documentation's fenced code blocks, and the commands in its shell blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"\w+=")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: path from the repository's root.
        line: number of its first line in the page.
        language: language that the fence names.
        code: text without the fences.
    """

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        """Page and line, as a test's id."""
        return f"{self.page}:{self.line}"


def of_page(path: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        yield Block(str(path.relative_to(ROOT)), line, match[2], dedent(match[3]))


BLOCKS = [block for page in PAGES for block in of_page(page)]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without leading variable assignments."""
    held = ""
    for line in code.replace("\\\n", " ").splitlines(keepends=True):
        held += line
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quotation continues on the next line
            continue
        held = ""
        while words and _VARIABLE.match(words[0]):
            words.pop(0)
        if words:
            yield words
    assert not held, f"unterminated quotation: {held}"
