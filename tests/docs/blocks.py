"""The fenced code blocks of the documentation, and the commands in those of the shell."""

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
        page: its page, from the repository's root.
        line: of the page, its first.
        language: as the fence names it.
    """

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        """Where it is, as a test's id."""
        return f"{self.page}:{self.line}"


def of_page(path: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        yield Block(str(path.relative_to(ROOT)), line, found[2], dedent(found[3]))


BLOCKS = [block for page in PAGES for block in of_page(page)]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without variables set before it."""
    held = ""
    for line in code.replace("\\\n", " ").splitlines(keepends=True):
        held += line
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quotation goes on
            continue
        held = ""
        while words and _VARIABLE.match(words[0]):
            words.pop(0)
        if words:
            yield words
    assert not held, f"a quotation that does not end: {held}"
