"""Responses read from a file: kinds of rows, files of ``cdserve collect``, errors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cdserve.collection.derive import derive
from cdserve.collection.formats import FORMATS
from cdserve.errors import ConfigError
from cdserve.prompts import Prompt
from cdserve.training.examples import Example, Examples, read_examples
from tests.collection.samples import CHAT, SETTINGS, TEXT, job, response, result


def read(folder: Path, *rows: Any) -> Examples:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path)


def contents(example: Example) -> tuple[Prompt, str, bool, Mapping[str, float]]:
    return example.prompt, example.response, example.ended, example.rewards


@pytest.mark.parametrize(
    ("row", "ended", "rewards"),
    [
        ({"prompt": "p", "response": "r", "reward": 2}, True, {"reward": 2.0}),
        ({"prompt": "p", "completion": "r", "rewards": {"a": 1, "b": -0.5}}, True, None),
        ({"prompt": "p", "completion": "r", "label": True, "score": 9}, True, {"label": 1.0}),
        ({"prompt": "p", "completion": "r", "label": False}, True, {"label": 0.0}),
        ({"prompt": "p", "completion": "r", "score": 3.5}, True, {"score": 3.5}),
        ({"prompt": "p", "response": "r"}, True, {}),
        ({"prompt": "p", "response": "r", "finish_reason": "length"}, False, {}),
        ({"prompt": "p", "response": "r", "finish_reason": "stop"}, True, {}),
        ({"prompt": "p", "response": {"role": "assistant", "content": "r"}}, True, {}),
        ({"prompt": "p", "response": [{"role": "assistant", "content": "r"}]}, True, {}),
    ],
)
def test_row_gives_a_response_with_its_rewards(
    tmp_path: Path, row: dict[str, Any], ended: bool, rewards: dict[str, float] | None
) -> None:
    examples = read(tmp_path, row)
    expected = row["rewards"] if rewards is None else rewards
    assert [contents(example) for example in examples.rows] == [("p", "r", ended, expected)]
    assert (examples.names, examples.pairs) == (tuple(expected), False)


def test_messages_are_a_prompt(tmp_path: Path) -> None:
    (example,) = read(tmp_path, {"messages": CHAT, "response": "r", "reward": 0}).rows
    assert example.prompt == CHAT


@pytest.mark.parametrize("prompt", [TEXT, CHAT])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_collect_is_accepted(tmp_path: Path, name: str, prompt: Prompt) -> None:
    collected = result(
        response("good", 1.0, chosen=True), response("bad", 0.5, "length"), prompt=prompt, index=0
    )
    derive(job(tmp_path, [prompt], [name]), [collected], SETTINGS)
    (path,) = tmp_path.glob("*.jsonl")
    examples = read_examples(path)
    expected = {
        "preference": [("good", True, {}), ("bad", True, {})],
        "sft": [("good", True, {"score": 1.0})],
        "unpaired": [("good", True, {"label": 1.0}), ("bad", True, {"label": 0.0})],
        "candidates": [("good", True, {"good": 1.0}), ("bad", False, {"good": 0.5})],
    }
    assert [contents(example)[1:] for example in examples.rows] == expected[name]
    assert all(example.prompt == prompt for example in examples.rows)
    assert examples.pairs == (name == "preference")


RATED = {"prompt": "p", "response": "r", "reward": 1}


@pytest.mark.parametrize(
    ("rows", "refusal"),
    [
        ([RATED, 7], r"line 2 is 7; it must be an object with \"prompt\""),
        ([RATED, {"prompt": "p"}], r"line 2 is \{'prompt': 'p'\}; it must be an object"),
        ([{**RATED, "completion": "c"}], "line 1 is .*; it must be an object"),
        ([{"response": "r", "reward": 1}], "line 1 is .*; it must be an object"),
        ([{**RATED, "prompt": 3}], "line 1: prompt is 3; a line must be an object"),
        ([{**RATED, "response": 3}], "line 1: response is 3; it must be a text or one message"),
        ([{**RATED, "reward": "1"}], "line 1: reward is '1'; it must be a finite number"),
        ([{**RATED, "reward": True}], "line 1: reward is True; it must be a finite number"),
        ([{**RATED, "reward": float("nan")}], "reward is nan; it must be a finite number"),
        ([{"prompt": "p", "response": "r", "rewards": {}}], r"rewards is \{\}; it must be numbers"),
        ([{**RATED, "finish_reason": 1}], "finish_reason is 1; it must be stop, length"),
        ([{"prompt": "p", "completion": "r", "label": 1}], "label is 1; it must be true or false"),
        (
            [RATED, {"prompt": "p", "completion": "r", "label": True}],
            "line 2 has 'label', and the first row has 'reward'; all rows must be of one kind",
        ),
        (
            [{"prompt": "p", "response": "r", "rewards": {name: 1}} for name in "ab"],
            "line 2 has rewards b; the first has a",
        ),
        ([{"prompt": "p", "candidates": []}], r"line 1: candidates is \[\]; it must be a list"),
        ([{"prompt": "p", "candidates": ["r"]}], "line 1, candidate 1 is 'r'; .* \"rewards\""),
        (
            [{"prompt": "p", "candidates": [{"text": "r", "rewards": {"a": None}}]}],
            r"line 1, candidate 1: rewards\.a is None; it must be a finite number",
        ),
        ([{"prompt": "p", "chosen": "a", "rejected": None}], "line 1: rejected is None; .* text"),
    ],
)
def test_error_names_line_value_and_requirement(
    tmp_path: Path, rows: list[Any], refusal: str
) -> None:
    with pytest.raises(ConfigError, match=refusal):
        read(tmp_path, *rows)


def test_rewards_are_not_read_if_others_replace_them(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    candidates = [{"text": "r", "rewards": {"failed": None}}]
    path.write_text(json.dumps({"prompt": "p", "candidates": candidates}) + "\n")
    examples = read_examples(path, with_rewards=False)
    assert ([example.rewards for example in examples.rows], examples.names) == ([{}], ())


def test_file_must_have_rows_of_json(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n")
    with pytest.raises(ConfigError, match=r"data\.jsonl has no responses; each line must be an"):
        read_examples(path)
    path.write_text('{"prompt"\n')
    with pytest.raises(ConfigError, match=r"line 1 is '\{\"prompt\"', which is not JSON"):
        read_examples(path)
