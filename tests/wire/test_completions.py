"""``/v1/completions`` through OpenAI's client: answers, reports, presets, choices, prompts."""

from typing import Any

import pytest
from openai import OpenAI

from tests.server.wire import BEST_OF_N, BLOCKWISE, PROMPT, check_report, complete, joined

SEARCHES = pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])


class TestPlain:
    def test_method_none_answers_like_no_policy(self, client: OpenAI) -> None:
        absent, none = complete(client), complete(client, {"method": "none"})
        assert none.choices == absent.choices
        assert none.usage == absent.usage

    @pytest.mark.parametrize("policy", [None, {"method": "none"}])
    def test_plain_answer_has_no_report(
        self, client: OpenAI, policy: dict[str, str] | None
    ) -> None:
        assert not hasattr(complete(client, policy), "alignment")

    def test_plain_stream_is_the_same_text_in_several_chunks(self, client: OpenAI) -> None:
        chunks = list(complete(client, stream=True))
        assert joined(chunks) == complete(client).choices[0].text
        assert len(chunks) > 1


class TestReport:
    @SEARCHES
    def test_report_has_its_shape_and_counts(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, policy)
        check_report(answer.alignment, policy, answer.usage.completion_tokens)

    @pytest.mark.parametrize("tokens", [15, 16, 17, 32, 33])
    def test_partial_block_counts_as_a_decision(self, client: OpenAI, tokens: int) -> None:
        answer = complete(client, BLOCKWISE, max_tokens=tokens, ignore_eos=True)
        assert answer.usage.completion_tokens == tokens
        check_report(answer.alignment, BLOCKWISE, tokens)

    @SEARCHES
    def test_usage_counts_the_returned_tokens(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, policy)
        assert answer.usage.completion_tokens == len(answer.choices[0].token_ids)
        assert answer.usage.prompt_tokens == len(answer.choices[0].prompt_token_ids)

    @SEARCHES
    def test_candidate_tokens_count_all_drawn_tokens(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, ignore_eos=True, max_tokens=40)
        assert answer.alignment["candidate_tokens"] == 4 * 40

    @SEARCHES
    def test_report_none_omits_the_report(self, client: OpenAI, policy: dict[str, Any]) -> None:
        silent = complete(client, {**policy, "report": "none"})
        assert not hasattr(silent, "alignment")
        assert silent.choices == complete(client, policy).choices

    @SEARCHES
    def test_trace_lists_every_candidate(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, {**policy, "report": "trace"})
        report = answer.alignment
        decisions = report.pop("trace")
        check_report(report, policy, answer.usage.completion_tokens)
        assert [len(d["candidates"]) for d in decisions] == [4] * report["decisions"]
        for candidate in (c for d in decisions for c in d["candidates"]):
            assert {"text", "score", "rewards", "chosen"} <= set(candidate)
            assert candidate["rewards"] == {"sentiment": candidate["score"]}

    @SEARCHES
    def test_trace_shows_how_the_text_was_selected(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, {**policy, "report": "trace"})
        chosen = [[c for c in d["candidates"] if c["chosen"]] for d in answer.alignment["trace"]]
        assert [len(of_decision) for of_decision in chosen] == [1] * len(chosen)
        assert "".join(c["text"] for [c] in chosen) == answer.choices[0].text
        for [candidate], decision in zip(chosen, answer.alignment["trace"], strict=True):
            assert candidate["score"] == max(c["score"] for c in decision["candidates"])
        assert chosen[-1][0]["score"] == answer.alignment["score"]

    def test_kl_estimate_is_measured_if_logprobs_are_requested(self, client: OpenAI) -> None:
        kl = complete(client, BEST_OF_N, logprobs=0, max_tokens=3).alignment["kl"]
        assert kl["estimator"] == "epsilon_n"
        assert 0 < kl["estimate"] < kl["bound"]

    def test_kl_estimate_is_relative_to_the_sampling_distribution(self, client: OpenAI) -> None:
        """At this temperature all candidates are one text: the KL is 0, or only bounded."""
        answer = complete(client, BEST_OF_N, logprobs=0, max_tokens=8, temperature=0.01)
        kl = answer.alignment["kl"]
        assert kl["estimator"] == "bound" or kl["estimate"] < 1e-3


class TestRewards:
    def test_score_weighs_rewards_by_the_weights_of_the_request(self, client: OpenAI) -> None:
        weights = {"sentiment": 0.7, "brevity": 0.3}
        report = complete(client, {**BLOCKWISE, "rewards": weights}).alignment
        assert report["score"] == pytest.approx(
            sum(weights[name] * value for name, value in report["rewards"].items())
        )

    def test_reward_of_finished_texts_scores_the_returned_text(self, client: OpenAI) -> None:
        from cdserve.demo.tiny.reward import sentiment_gold

        policy = {**BEST_OF_N, "rewards": {"sentiment_gold": 1.0}}
        answer = complete(client, policy)
        check_report(answer.alignment, policy, answer.usage.completion_tokens)
        assert answer.alignment["score"] == sentiment_gold(PROMPT, answer.choices[0].text)

    def test_brevity_reward_selects_the_length_nearest_its_target(self, client: OpenAI) -> None:
        """The reward is −|tokens − 40| / 40."""
        policy = {"method": "best_of_n", "n": 16, "rewards": {"brevity": 1.0}, "report": "trace"}
        answer = complete(client, policy, max_tokens=200)
        tokens = answer.usage.completion_tokens
        drawn = [c["tokens"] for c in answer.alignment["trace"][0]["candidates"]]
        assert abs(tokens - 40) == min(abs(count - 40) for count in drawn)
        assert answer.alignment["score"] == pytest.approx(-abs(tokens - 40) / 40)


class TestPresets:
    @pytest.mark.parametrize(("preset", "policy"), [("safe", BLOCKWISE), ("best-of-4", BEST_OF_N)])
    def test_preset_name_and_model_id_are_the_same_policy(
        self, client: OpenAI, preset: str, policy: dict[str, Any]
    ) -> None:
        spelt_out = complete(client, policy)
        by_name = complete(client, preset)
        by_model = complete(client, model=f"demo:{preset}")
        assert spelt_out.choices == by_name.choices == by_model.choices
        check_report(by_model.alignment, policy, by_model.usage.completion_tokens)

    @pytest.mark.parametrize("stream", [False, True])
    def test_answer_names_the_requested_model(self, client: OpenAI, stream: bool) -> None:
        answer = complete(client, model="demo:safe", stream=stream)
        assert {chunk.model for chunk in (answer if stream else [answer])} == {"demo:safe"}


class TestChoices:
    @SEARCHES
    def test_each_choice_has_a_report(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, policy, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1]
        reports = answer.alignment["choices"]
        for choice, report in zip(answer.choices, reports, strict=True):
            check_report(report, policy, len(choice.token_ids))

    @SEARCHES
    def test_report_counts_are_sums_over_choices(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, n=2)
        report, parts = answer.alignment, answer.alignment["choices"]
        for count in ("decisions", "candidates", "candidate_tokens", "ties"):
            assert report[count] == sum(part[count] for part in parts)
        assert report["kl"]["bound"] == max(part["kl"]["bound"] for part in parts)
        assert answer.usage.completion_tokens == sum(len(c.token_ids) for c in answer.choices)

    @SEARCHES
    def test_choices_are_drawn_independently(self, client: OpenAI, policy: dict[str, Any]) -> None:
        first, second = complete(client, policy, n=2).choices
        assert first.text != second.text

    @SEARCHES
    def test_stream_interleaves_choices(self, client: OpenAI, policy: dict[str, Any]) -> None:
        whole = complete(client, policy, n=2)
        chunks = list(complete(client, policy, n=2, stream=True))
        assert [joined(chunks, 0), joined(chunks, 1)] == [c.text for c in whole.choices]
        assert [hasattr(chunk, "alignment") for chunk in chunks].count(True) == 1
        assert len(chunks[-1].alignment["choices"]) == 2


class TestPrompts:
    def test_prompt_of_token_ids_is_answered_like_its_text(self, client: OpenAI) -> None:
        by_text = complete(client, BLOCKWISE)
        by_ids = complete(client, BLOCKWISE, prompt=by_text.choices[0].prompt_token_ids)
        assert by_ids.choices[0].text == by_text.choices[0].text

    @SEARCHES
    def test_several_prompts_are_answered_in_order(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        prompts = [PROMPT, "Film review: The Velvet Promise."]
        answer = complete(client, policy, prompt=prompts)
        alone = [complete(client, policy, prompt=prompt) for prompt in prompts]
        assert [c.text for c in answer.choices] == [one.choices[0].text for one in alone]
        for choice, report in zip(answer.choices, answer.alignment["choices"], strict=True):
            check_report(report, policy, len(choice.token_ids))

    def test_several_prompts_are_streamed_with_one_report(self, client: OpenAI) -> None:
        prompts = [PROMPT, "Film review: The Velvet Promise."]
        whole = complete(client, BLOCKWISE, prompt=prompts)
        chunks = list(complete(client, BLOCKWISE, prompt=prompts, stream=True))
        assert [joined(chunks, 0), joined(chunks, 1)] == [c.text for c in whole.choices]
        assert [hasattr(chunk, "alignment") for chunk in chunks].count(True) == 1

    @SEARCHES
    @pytest.mark.parametrize("stream", [False, True])
    def test_echo_puts_the_prompt_before_the_text(
        self, client: OpenAI, policy: dict[str, Any], stream: bool
    ) -> None:
        plain = complete(client, policy)
        echoed = complete(client, policy, echo=True, stream=stream, return_token_ids=False)
        text = joined(echoed) if stream else echoed.choices[0].text
        assert text == PROMPT + plain.choices[0].text
