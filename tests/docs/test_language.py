"""Docstrings, descriptions, help texts and metric HELP lines are plain English when read alone."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from .blocks import ROOT

NOT_YET: tuple[str, ...] = ()
"""Packages whose text does not follow the rules yet."""

METRICS = {"Counter", "Gauge", "Histogram", "Summary"}
UNITS = "row|token|step|slot|request|candidate|block|draw|decision|nat"


class Rule(NamedTuple):
    """A pattern that no text may contain, with an example of what to write instead."""

    pattern: str
    refused: str
    accepted: str


RULES = (
    Rule(
        r"\A(?:Those|Its|Their|Of|That|What|It|They)\b",
        refused="Those of them whose two best scores were equal.",
        accepted="Decisions in which the two highest scores were equal.",
    ),
    Rule(
        r"(?<!\b[Tt]here )\b(?:is|are) (?:none|no(?! longer))\b",
        refused="A preset that is none, or whose head is no Q-head.",
        accepted="The name is not a preset's. There is no limit, and it is no longer read.",
    ),
    Rule(
        rf"\b(?:one|values|(?:{UNITS})s?) an? (?:{UNITS})\b",
        refused="Number of blocks, one a token.",
        accepted="One block per token; the next token of a request.",
    ),
    Rule(
        r"\b(?:is|are) told\b",
        refused="What only the log is told: whatever a client is told.",
        accepted="Message for the log, and the message for the client.",
    ),
    Rule(
        r"\bof (?:them|those) (?:that|who)\b",
        refused="The tokens, of them that end a block.",
        accepted="Tokens that end a block.",
    ),
    Rule(
        r"\bbeside\b",
        refused="Metrics beside vLLM's.",
        accepted="Metrics in addition to vLLM's, and besides them.",
    ),
    Rule(
        r"\blaws?\b",
        refused="The law of a draw.",
        accepted="The distribution of a draw; a flaw.",
    ),
)


def violations(text: str) -> list[str]:
    """Parts of a text that match the pattern of a rule."""
    matches = (re.search(rule.pattern, text) for rule in RULES)
    return [match[0] for match in matches if match]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line number and content of each documenting string in a module.

    Docstrings (attributes included), ``description=``, ``help=`` and ``documentation=`` arguments,
    and the second argument of Prometheus metrics.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr):
            yield from constant(node.value)
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in ("description", "help", "documentation"):
                    yield from constant(keyword.value)
            if isinstance(node.func, ast.Name) and node.func.id in METRICS and len(node.args) > 1:
                yield from constant(node.args[1])


def constant(node: ast.expr) -> Iterator[tuple[int, str]]:
    """Line number and content of a string literal, with spaces normalised."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        yield node.lineno, " ".join("".join(map(str, parts)).split())
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, " ".join(node.value.split())


def sources() -> list[str]:
    """Paths of the modules to check, relative to the root."""
    paths = [path for name in ("cdserve", "value_heads") for path in (ROOT / name).rglob("*.py")]
    modules = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    return [m for m in modules if not m.removesuffix(".py").replace("/", ".").startswith(NOT_YET)]


@pytest.mark.parametrize("path", sources())
def test_module_text_follows_the_rules(path: str) -> None:
    refused = [
        f"{path}:{line}: {', '.join(map(repr, wrong))} in: {text}"
        for line, text in texts((ROOT / path).read_text(encoding="utf-8"))
        if (wrong := violations(text))
    ]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.refused)
def test_rule_refuses_the_bad_example_and_accepts_the_good_one(rule: Rule) -> None:
    assert re.search(rule.pattern, rule.refused)
    assert violations(rule.accepted) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module does."""',
        'class A:\n    """What a class does."""',
        'class A:\n    b = 1\n    """What an attribute means."""',
        'def f():\n    """What a function does."""',
        'b = Field(default=None, description="What a field " "means.")',
        'parser.add_argument("--b", help=f"What a {flag} does")',
        'B = Counter("b", "What a metric counts.", ["c"])',
    ],
)
def test_texts_finds_each_kind_of_documented_string(source: str) -> None:
    assert [violations(text) for _, text in texts(source)] == [["What"]]


def test_texts_leaves_other_strings_out() -> None:
    assert list(texts('a = "What"; f("What", name="What"); b = Error("What", "What")')) == []
