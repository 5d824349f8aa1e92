"""Extractors: numbers, boxes, regular expressions and the operator's functions."""

import asyncio
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.config import BUILT_IN_EXTRACTORS
from cdserve.errors import ConfigError, PolicyError, ScoringError
from cdserve.scoring import Extractors, extraction
from cdserve.scoring.extraction import boxed, last_number

reproducible = settings(derandomize=True, deadline=None, max_examples=300)
NASTY = st.text(st.sampled_from("0123456789.,-+−$%eE \\{}boxed"), max_size=60)


def first_word(text: str) -> str | None:
    """An operator's function."""
    return text.split()[0] if text.split() else None


def number(text: str) -> int:
    """A function that returns no string."""
    return len(text)


def fails(text: str) -> str:
    raise ValueError("secret")


def hangs(text: str) -> str:
    time.sleep(5)
    return text


def own(**functions: str) -> Extractors:
    return Extractors.load({name: f"{__name__}:{path}" for name, path in functions.items()}, "log")


def find(extract: str, text: str, **functions: str) -> str | None:
    async def answer() -> str | None:
        return await own(**functions).of(extract).find(text)

    return asyncio.run(answer())


class TestLastNumber:
    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            ("It is 1,000.", "1000"),
            ("x = 1000.0", "1000"),
            ("$1,234.50 in total", "1234.5"),
            ("50%", "50"),
            ("first 3, then -5", "-5"),
            ("−7 degrees", "-7"),
            ("-$5", "-5"),
            ("10-5", "5"),
            ("pages 3–5", "5"),
            ("+007", "7"),
            (".5", "0.5"),
            ("-0.00", "0"),
            ("1e3", "1000"),
            ("2.5E-2", "0.025"),
            ("1,2,3", "3"),
            ("version 3.14.15", "3.14"),
            ("1,0000", "0"),
            ("H2O and item_3", None),
            ("no number", None),
            ("", None),
        ],
    )
    def test_last_number_is_normalised(self, text: str, answer: str | None) -> None:
        assert last_number(text) == answer

    @reproducible
    @given(st.integers(-(10**9), 10**9), st.integers(0, 3), st.text("abc ,", max_size=10))
    def test_forms_of_one_number_have_one_answer(self, n: int, zeros: int, words: str) -> None:
        fraction = f".{'0' * zeros}" if zeros else ""
        assert last_number(f"{words} {n}{fraction}") == str(n)
        assert last_number(f"{words} {n:,}{fraction}") == str(n)

    @reproducible
    @given(NASTY)
    def test_answers_are_plain_decimals(self, text: str) -> None:
        answer = last_number(text)
        if answer is not None:
            assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", answer)
            assert last_number(answer) == answer

    def test_long_texts_take_time_in_proportion(self) -> None:
        assert last_number("1,111" * 50_000) == "111"
        assert last_number("9" * 200_000) is not None


class TestBoxed:
    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            (r"so \boxed{5}", "5"),
            (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
            (r"\boxed{1,000.0}", "1000"),
            (r"\boxed{50\%}", "50"),
            (r"\boxed{-\$5}", "-5"),
            (r"\boxed{$\$1,000$}", "1000"),
            (r"\boxed{1} and \boxed{2", "1"),
            (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
            (r"\boxed{\boxed{7}}", "7"),
            (r"a}} \boxed {x   y}", "x y"),
            (r"\\boxed{3}", "3"),
            (r"\boxed{}", None),
            (r"\boxed{", None),
            ("{5}", None),
        ],
    )
    def test_last_complete_box_is_the_answer(self, text: str, answer: str | None) -> None:
        assert boxed(text) == answer

    @reproducible
    @given(st.recursive(st.text("ab ", max_size=4), lambda x: x.map(lambda s: f"{{{s}}}{s}")))
    def test_nested_braces_are_kept(self, content: str) -> None:
        expected = " ".join(content.split()) or None
        assert boxed(rf"\boxed{{0}} \boxed{{{content}}} end") == expected

    @reproducible
    @given(NASTY)
    def test_any_text_has_an_answer_or_none(self, text: str) -> None:
        assert boxed(text) != ""

    def test_many_open_boxes_take_time_in_proportion(self) -> None:
        assert boxed("\\boxed{" * 100_000) is None
        assert boxed("\\boxed{" * 20_000 + "}" * 20_000) is None


class TestPattern:
    def test_last_match_of_a_pattern_is_the_answer(self) -> None:
        assert find(r"answer is (\w+)", "The answer is A. No, the answer is B or C") == "B"

    def test_answer_of_a_pattern_is_stripped_and_not_empty(self) -> None:
        assert find(r"answer:([^.]*)", "answer:  B . ") == "B"
        assert find(r"answer:([^.]*)", "answer: .") is None
        assert find(r"x|(y)", "x") is None

    def test_pattern_keeps_leading_zeros(self) -> None:
        assert find(r"code (\d+)", "code 0123") == "0123"

    def test_catastrophic_pattern_is_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extraction, "PATTERN_SECONDS", 0.02)
        with pytest.raises(TimeoutError):
            find(r"((?:\w+\s?)*)$", "x " * 5000 + "!")

    def test_pattern_does_not_block_the_event_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extraction, "PATTERN_SECONDS", 0.2)

        async def ticks() -> int:
            slow = asyncio.create_task(own().of(r"((?:\w+\s?)*)$").find("x " * 5000 + "!"))
            count = 0
            while not slow.done():
                await asyncio.sleep(0.001)
                count += 1
            with pytest.raises(TimeoutError):
                slow.result()
            return count

        assert asyncio.run(ticks()) > 5


class TestFunction:
    def test_operators_function_finds_the_answer(self) -> None:
        assert find("word", "yes it is", word="first_word") == "yes"
        assert find("word", " ", word="first_word") is None

    @pytest.mark.parametrize(
        ("function", "reason"),
        [("fails", "failed with ValueError"), ("number", "returned int; it may return a string")],
    )
    def test_failure_of_a_function_names_the_extractor(self, function: str, reason: str) -> None:
        with pytest.raises(ScoringError, match=f"extractor 'f' {reason}") as caught:
            find("f", "text", f=function)
        assert "secret" not in str(caught.value)

    def test_function_has_a_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extraction, "FUNCTION_SECONDS", 0.05)
        with pytest.raises(ScoringError, match=r"took longer than 0\.05 s"):
            find("f", "text", f="hangs")

    @pytest.mark.parametrize("path", ["no_such_module:f", "json:no_such_function"])
    def test_function_that_cannot_be_imported_is_rejected(self, path: str) -> None:
        with pytest.raises(ConfigError, match=r"extractors\.f: .* cannot be imported"):
            Extractors.load({"f": path}, "log")

    def test_name_that_is_not_callable_is_rejected(self) -> None:
        with pytest.raises(ConfigError, match=r"extractors\.f: json:__name__ is not callable"):
            Extractors.load({"f": "json:__name__"}, "log")


class TestNames:
    def test_extractors_list_the_built_in_and_the_operators(self) -> None:
        assert own(word="first_word").names == [*BUILT_IN_EXTRACTORS, "word"]

    def test_unknown_name_is_rejected_with_the_known_ones(self) -> None:
        with pytest.raises(PolicyError) as caught:
            own(word="first_word").of("last_word")
        assert str(caught.value) == (
            "alignment.selection.vote.extract is 'last_word'; this server has 'last_number', "
            "'boxed', 'word', and takes regular expressions with one group"
        )
