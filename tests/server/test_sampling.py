"""Sampling fields keep their meaning under every method: seeds, stops, lengths, logprobs."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from .wire import BEST_OF_N, BLOCKWISE, Ask, chat, complete, joined, of_seeds, text_of

SEARCHES = pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
ROUTES = pytest.mark.parametrize("ask", [complete, chat])
ONE = {"method": "best_of_n", "n": 1}
ONE_BLOCKWISE = {"method": "blockwise_cd", "k": 1, "m": 16}
NO_CHOICE = pytest.mark.parametrize("policy", [ONE, ONE_BLOCKWISE], ids=lambda p: p["method"])
"""Policies whose text is that of plain decoding, so that a stop changes nothing before it."""
LONG = {"max_tokens": 60, "ignore_eos": True}


class TestSeed:
    @SEARCHES
    @pytest.mark.parametrize("n", [1, 2])
    @ROUTES
    def test_same_request_has_the_same_answer(
        self, client: OpenAI, ask: Ask, n: int, policy: dict[str, Any]
    ) -> None:
        first, second = (ask(client, policy, n=n) for _ in range(2))
        assert first.choices == second.choices

    @SEARCHES
    def test_another_seed_has_another_answer(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answers = of_seeds(client, (0, 1000, 2000), policy, max_tokens=24)
        assert len({answer.choices[0].text for answer in answers}) == 3

    def test_neighbouring_seeds_share_no_candidate(self, client: OpenAI) -> None:
        """Else a sweep over seeds would draw the same winner again and again."""
        traced = {**BEST_OF_N, "report": "trace"}
        drawn = [
            {c["text"] for c in answer.alignment["trace"][0]["candidates"]}
            for answer in of_seeds(client, (0, 1), traced, max_tokens=24)
        ]
        assert drawn[0].isdisjoint(drawn[1])

    @SEARCHES
    def test_answers_without_a_seed_differ(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answers = of_seeds(client, [None] * 3, policy, max_tokens=24)
        assert len({answer.choices[0].text for answer in answers}) == 3


class TestPolicySampling:
    @pytest.mark.parametrize("preset", ["best-of-8", "blockwise"])
    @ROUTES
    def test_equal_requests_with_a_preset_at_temperature_zero_have_equal_answers(
        self, client: OpenAI, ask: Ask, preset: str
    ) -> None:
        asked = {"model": f"demo:{preset}", "temperature": 0, "seed": None}
        first, second = ask(client, **asked), ask(client, **asked)
        assert first.choices == second.choices
        used = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": 0.0, "seed": 0}
        assert first.alignment["sampling"] == second.alignment["sampling"] == used


class TestIdentities:
    """Bit for bit, with a seed."""

    @pytest.mark.parametrize("m", [48, 49, 500])
    @ROUTES
    def test_one_long_block_is_best_of_n(self, client: OpenAI, ask: Ask, m: int) -> None:
        blockwise = ask(client, {"method": "blockwise_cd", "k": 4, "m": m})
        best = ask(client, BEST_OF_N)
        assert blockwise.choices == best.choices
        assert blockwise.usage == best.usage
        assert blockwise.alignment["scores"] == pytest.approx(best.alignment["scores"], abs=1e-5)

    @ROUTES
    def test_best_of_one_is_plain_decoding(self, client: OpenAI, ask: Ask) -> None:
        plain, best = ask(client), ask(client, ONE)
        assert best.choices == plain.choices
        assert best.usage == plain.usage

    @pytest.mark.parametrize("m", [1, 7, 32])
    def test_greedy_blocks_of_one_candidate_are_plain_decoding(
        self, client: OpenAI, m: int
    ) -> None:
        plain = complete(client, temperature=0)
        blockwise = complete(client, {"method": "blockwise_cd", "k": 1, "m": m}, temperature=0)
        assert blockwise.choices == plain.choices


class TestSelection:
    @pytest.mark.parametrize("policy", [BEST_OF_N, {**BLOCKWISE, "m": 8}])
    def test_cold_softmax_is_argmax(self, client: OpenAI, policy: dict[str, Any]) -> None:
        cold = complete(client, {**policy, "selection": {"softmax": 1e-6}})
        assert cold.choices == complete(client, policy).choices

    def test_hot_softmax_does_not_always_take_the_best(self, client: OpenAI) -> None:
        hot = {**BLOCKWISE, "m": 8, "selection": {"softmax": 1e6}, "report": "trace"}
        trace = complete(client, hot, **LONG).alignment["trace"]
        best = [max(d["candidates"], key=lambda c: c["score"])["chosen"] for d in trace]
        assert not all(best)

    def test_softmax_selection_is_seeded(self, client: OpenAI) -> None:
        policy = {**BLOCKWISE, "m": 8, "selection": {"softmax": 0.1}}
        assert complete(client, policy).choices == complete(client, policy).choices


class TestLength:
    @SEARCHES
    @pytest.mark.parametrize("tokens", [1, 16, 25])
    def test_max_tokens_ends_the_response(
        self, client: OpenAI, tokens: int, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, max_tokens=tokens, ignore_eos=True)
        assert answer.usage.completion_tokens == tokens
        assert answer.choices[0].finish_reason == "length"

    @SEARCHES
    def test_without_ignore_eos_responses_end_by_themselves(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answers = of_seeds(client, range(2), policy, max_tokens=400)
        assert {answer.choices[0].finish_reason for answer in answers} == {"stop"}

    @SEARCHES
    def test_min_tokens_holds_across_blocks(self, client: OpenAI, policy: dict[str, Any]) -> None:
        fields = {"max_tokens": 150, "min_tokens": 120}
        answers = of_seeds(client, range(2), policy, **fields)
        assert min(answer.usage.completion_tokens for answer in answers) >= 120

    @SEARCHES
    def test_chat_without_max_tokens_may_fill_the_context(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = chat(client, policy, max_tokens=None)
        assert answer.choices[0].finish_reason == "stop"


class TestStop:
    @NO_CHOICE
    @pytest.mark.parametrize("include", [False, True])
    def test_stop_string_may_straddle_a_block_boundary(
        self, client: OpenAI, include: bool, policy: dict[str, Any]
    ) -> None:
        text, stop = _across_the_first_block(client, policy)
        answer = complete(client, policy, stop=[stop], include_stop_str_in_output=include, **LONG)
        assert answer.choices[0].text == text + stop * include
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == stop

    @NO_CHOICE
    def test_stream_never_shows_a_part_of_a_stop_string(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        text, stop = _across_the_first_block(client, policy)
        assert joined(complete(client, policy, stop=[stop], stream=True, **LONG)) == text

    def test_every_candidate_stops_at_a_stop_string(self, client: OpenAI) -> None:
        """The stop begins in the accepted block and ends in the common start of all candidates."""
        seed, accepted, stop = next(_stops_across_the_first_block(client))
        answer = complete(client, BLOCKWISE, seed=seed, stop=stop, **LONG)
        assert answer.choices[0].text == accepted[:-3]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.alignment["decisions"] == 2

    def test_best_of_one_stops_as_plain_decoding_does(self, client: OpenAI) -> None:
        _, stop = _across_the_first_block(client, ONE)
        plain, best = (complete(client, policy, stop=stop, **LONG) for policy in (None, ONE))
        assert best.choices == plain.choices
        assert best.usage == plain.usage

    @SEARCHES
    def test_no_text_goes_past_a_stop(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, policy, stop=["."], max_tokens=100)
        assert "." not in answer.choices[0].text
        assert answer.choices[0].finish_reason == "stop"

    @NO_CHOICE
    @pytest.mark.parametrize("at", [5, 15, 16, 20])
    def test_stop_token_ends_the_response(
        self, client: OpenAI, at: int, policy: dict[str, Any]
    ) -> None:
        whole = complete(client, policy, **LONG).choices[0].token_ids
        stop = whole[at]
        answer = complete(client, policy, stop_token_ids=[stop], **LONG)
        assert answer.choices[0].token_ids == whole[: whole.index(stop) + 1]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == stop

    @SEARCHES
    def test_min_tokens_comes_before_a_stop(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, policy, stop=["."], max_tokens=100, min_tokens=40)
        assert answer.usage.completion_tokens >= 40
        assert answer.choices[0].finish_reason == "stop"


class TestDistribution:
    @SEARCHES
    @pytest.mark.parametrize("field", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}])
    def test_all_candidates_are_drawn_from_the_cut_distribution(
        self, client: OpenAI, field: dict[str, float], policy: dict[str, Any]
    ) -> None:
        greedy = complete(client, temperature=0)
        answer = complete(client, {**policy, "report": "trace"}, **field)
        assert answer.choices[0].text == greedy.choices[0].text
        for decision in answer.alignment["trace"]:
            assert len({candidate["text"] for candidate in decision["candidates"]}) == 1

    @SEARCHES
    def test_logit_bias_reaches_every_candidate(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, logit_bias={"300": 100}, max_tokens=40)
        assert answer.choices[0].token_ids == [300] * 40

    @SEARCHES
    def test_temperature_reaches_every_candidate(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        fields = {"report": "trace", **policy}
        hot = complete(client, fields, temperature=2.0, logprobs=0, **LONG)
        cool = complete(client, fields, temperature=0.3, logprobs=0, **LONG)
        means = [sum(a.choices[0].logprobs.token_logprobs) / 60 for a in (hot, cool)]
        assert means[0] < means[1] - 1

    def test_repetition_penalty_counts_accepted_blocks(self, client: OpenAI) -> None:
        fields = {"temperature": 0, "repetition_penalty": 1.3, **LONG}
        plain = complete(client, **fields)
        blockwise = complete(client, {**ONE_BLOCKWISE, "m": 8}, **fields)
        assert blockwise.choices == plain.choices
        assert plain.choices != complete(client, temperature=0, **LONG).choices

    def test_best_of_n_accepts_penalties_of_output_tokens(self, client: OpenAI) -> None:
        fields = {"presence_penalty": 1.0, "frequency_penalty": 0.5}
        assert complete(client, ONE, **fields).choices == complete(client, **fields).choices


class TestLogprobs:
    @SEARCHES
    def test_completions_have_one_logprob_per_token(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, logprobs=2)
        logprobs = answer.choices[0].logprobs
        for entries in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            assert len(entries) == answer.usage.completion_tokens
        assert all(value <= 0 for value in logprobs.token_logprobs)

    @SEARCHES
    def test_chat_has_one_logprob_per_token(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = chat(client, policy, logprobs=True, top_logprobs=2)
        content = answer.choices[0].logprobs.content
        assert len(content) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) >= 2 for token in content)

    @SEARCHES
    def test_logprobs_change_no_token(self, client: OpenAI, policy: dict[str, Any]) -> None:
        asked, unasked = complete(client, policy, logprobs=0), complete(client, policy)
        assert asked.choices[0].token_ids == unasked.choices[0].token_ids

    @SEARCHES
    def test_stream_has_the_same_logprobs(self, client: OpenAI, policy: dict[str, Any]) -> None:
        whole = complete(client, policy, logprobs=0).choices[0].logprobs
        chunks = list(complete(client, policy, logprobs=0, stream=True))
        streamed = [v for chunk in chunks for v in chunk.choices[0].logprobs.token_logprobs]
        assert streamed == pytest.approx(whole.token_logprobs, abs=1e-4)
        offsets = [o for chunk in chunks for o in chunk.choices[0].logprobs.text_offset]
        assert offsets == whole.text_offset

    @pytest.mark.parametrize("m", [8, 32])
    def test_greedy_blockwise_logprobs_match_plain_decoding(self, client: OpenAI, m: int) -> None:
        fields = {"temperature": 0, "logprobs": 1}
        plain = complete(client, **fields).choices[0].logprobs
        blockwise = complete(client, {**ONE_BLOCKWISE, "m": m}, **fields).choices[0].logprobs
        assert blockwise.tokens == plain.tokens
        assert blockwise.token_logprobs == pytest.approx(plain.token_logprobs, abs=1e-4)
        assert sum(blockwise.token_logprobs) == pytest.approx(sum(plain.token_logprobs), abs=1e-3)
        assert blockwise.text_offset == plain.text_offset

    @SEARCHES
    def test_logprobs_end_with_the_tokens_at_a_stop_string(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, stop=["."], max_tokens=100, logprobs=0)
        assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens

    @SEARCHES
    def test_echo_has_the_logprobs_of_the_prompt(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, echo=True, logprobs=0, max_tokens=40)
        assert len(answer.choices[0].logprobs.tokens) == answer.usage.total_tokens


def _across_the_first_block(client: OpenAI, policy: dict[str, Any]) -> tuple[str, str]:
    """A stop string around the text's 16th token, and the text before it."""
    answer = complete(client, policy, logprobs=0, **LONG).choices[0]
    boundary = answer.logprobs.text_offset[16] - answer.logprobs.text_offset[0]
    for reach in range(3, 20):
        start = boundary - reach
        stop = answer.text[start : boundary + reach]
        if answer.text.find(stop) == start:
            return answer.text[:start], stop
    raise AssertionError(f"no stop string of its own around {boundary} in {answer.text!r}")


def _stops_across_the_first_block(client: OpenAI) -> Iterator[tuple[int, str, str]]:
    """Seed, accepted first block, and a stop string that all second blocks complete.

    No candidate for the first block contains the string: it would end there, with another score.
    """
    policy = {**BLOCKWISE, "report": "trace"}
    for seed in range(20):
        first, second, *_ = complete(client, policy, seed=seed, **LONG).alignment["trace"]
        (accepted,) = (c["text"] for c in first["candidates"] if c["chosen"])
        stop = accepted[-3:] + _common_start([c["text"] for c in second["candidates"]])
        if len(stop) > 3 and not any(stop in c["text"] for c in first["candidates"]):
            yield seed, accepted, stop


def _common_start(texts: list[str]) -> str:
    """The longest common prefix of the texts."""
    equal = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in equal)


def test_stop_string_of_a_chat_is_honoured(client: OpenAI) -> None:
    answer = chat(client, BLOCKWISE, stop=["."], max_tokens=100)
    assert "." not in text_of(answer.choices[0])
    assert answer.choices[0].finish_reason == "stop"
