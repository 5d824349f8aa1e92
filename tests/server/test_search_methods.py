"""Methods and rules beyond best-of-n and blocks of K, served."""

import math
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import httpx2
import pytest
from openai import OpenAI

from cdserve import kl
from cdserve.decoders.continuation_gain import continuation_gain
from cdserve.demo.tiny import HEAD_DIR
from cdserve.scoring import HeldOut

from .wire import BEST_OF_N, BLOCKWISE, STEPS, blocks, check_refused, complete, joined, of_seeds

POISSON = {"method": "best_of_poisson", "mu": 3.0}
REJECTION = {"method": "rejection", "eta": 0.5, "r_max": 4.0, "max_draws": 16}
SPECULATIVE = {"method": "speculative_rejection", "n": 8, "m": 16}
CARDS = {"method": "cards", "m": 8, "r_star": 0.5, "max_draws": 8, "k": 2}
TWO = {"sentiment": 1.0, "brevity": 0.5}
WORST = {"rewards": TWO, "selection": {"worst_case": {"lambda": 2.0}}}
TRACE = {"report": "trace"}


def traced(answer: Any) -> list[list[dict[str, Any]]]:
    """The candidates of every decision."""
    return [decision["candidates"] for decision in answer.alignment["trace"]]


class TestBestOfPoisson:
    def test_best_of_poisson_draws_as_many_as_its_seed_gives(self, client: OpenAI) -> None:
        counts = []
        for answer in of_seeds(client, range(6), {**POISSON, **TRACE}, max_tokens=24):
            (candidates,) = traced(answer)
            assert answer.alignment["score"] == max(c["score"] for c in candidates)
            assert answer.alignment["kl"]["bound"] == kl.best_of_poisson_bound(3.0)
            assert "accepted" not in answer.alignment
            counts.append(len(candidates))
        assert len(set(counts)) > 1
        again = complete(client, {**POISSON, **TRACE}, seed=0, max_tokens=24)
        assert len(traced(again)[0]) == counts[0]

    def test_best_of_poisson_with_mean_zero_is_plain_decoding(self, client: OpenAI) -> None:
        one = complete(client, {"method": "best_of_poisson", "mu": 0})
        assert one.choices[0].token_ids == complete(client).choices[0].token_ids


class TestRejection:
    def test_rejection_takes_the_first_accepted_candidate(self, client: OpenAI) -> None:
        for answer in of_seeds(client, range(4), {**REJECTION, **TRACE}, max_tokens=24):
            report = answer.alignment
            (candidates,) = traced(answer)
            assert report["candidates"] == len(candidates)
            assert len(candidates) in (8, 16)
            assert isinstance(report["accepted"], bool)
            assert report["kl"]["estimator"] == ("k1" if report["accepted"] else "bound")
            if not report["accepted"]:
                assert report["score"] == max(c["score"] for c in candidates)

    def test_rejection_with_a_large_eta_accepts_all(self, client: OpenAI) -> None:
        answer = complete(client, {**REJECTION, "eta": 1e9})
        assert answer.alignment["accepted"] is True
        assert answer.choices[0].token_ids == complete(client).choices[0].token_ids

    def test_rejection_out_of_reach_accepts_none(self, client: OpenAI) -> None:
        policy = {**REJECTION, "r_max": 1e9, "max_draws": 10, **TRACE}
        answer = complete(client, policy, max_tokens=24)
        (candidates,) = traced(answer)
        assert len(candidates) == 10
        assert answer.alignment["accepted"] is False
        assert answer.alignment["score"] == max(c["score"] for c in candidates)

    @pytest.mark.parametrize(("r_max", "exact"), [(1e3, True), (-1e6, False), ("empirical", False)])
    def test_rejection_says_whether_its_law_is_exact(
        self, client: OpenAI, r_max: float | str, exact: bool
    ) -> None:
        policy = {**REJECTION, "eta": 1e9, "r_max": r_max}
        report = complete(client, policy, max_tokens=8).alignment
        assert (report["accepted"], report["exact"]) == (True, exact)

    def test_rejection_answers_each_of_several_choices(self, client: OpenAI) -> None:
        answer = complete(client, {**REJECTION, "eta": 1e9}, n=2, max_tokens=16)
        assert answer.alignment["accepted"] is True
        assert [made["accepted"] for made in answer.alignment["choices"]] == [True, True]


class TestSchedule:
    def test_schedule_of_k_gives_each_block_its_number(self, client: OpenAI) -> None:
        policy = {"method": "blockwise_cd", "k": [4, 2, 1], "m": 8, **TRACE}
        answer = complete(client, policy, max_tokens=32, ignore_eos=True)
        assert [len(candidates) for candidates in traced(answer)] == [4, 2, 1, 1]
        bound = kl.best_of_n_bound(4) + kl.best_of_n_bound(2)
        assert answer.alignment["kl"]["bound"] == pytest.approx(bound)
        assert len(blocks(answer.choices[0].token_ids, 8)) == 4

    def test_schedule_of_one_number_equals_that_k(self, client: OpenAI) -> None:
        listed = complete(client, {**BLOCKWISE, "k": [4]})
        assert listed.choices == complete(client, BLOCKWISE).choices


class TestContinuationGain:
    POLICY: ClassVar = {"method": "blockwise_cd", "k": 4, "m": 32, "report": "trace"}

    @pytest.mark.parametrize("gain", ["auto", 0.3, 1e6])
    def test_winner_has_the_highest_score_with_the_gain_of_unfinished_candidates(
        self, client: OpenAI, gain: float | str
    ) -> None:
        held_out, mixed, selected = HeldOut.read(HEAD_DIR, "sentiment"), 0, 0
        assert held_out is not None
        policy = {**self.POLICY, "continuation_gain": gain}
        for answer in of_seeds(client, range(12), policy, max_tokens=96):
            for number, candidates in enumerate(traced(answer), 1):
                ended = [c["finish_reason"] is not None for c in candidates]
                outlook = held_out.at(32 * number)
                outlook = replace(outlook, tokens=min(outlook.tokens, 96 - 32 * number))
                added = continuation_gain(outlook, 32, [4]) if gain == "auto" else gain
                ranks = [
                    c["score"] + (0 if end else added)
                    for c, end in zip(candidates, ended, strict=True)
                ]
                (chosen,) = (i for i, c in enumerate(candidates) if c["chosen"])
                assert ranks[chosen] == max(ranks)
                if any(ended) and not all(ended):
                    mixed, selected = mixed + 1, selected + ended[chosen]
            ends = answer.alignment["ends"]
            assert ends["selected"] <= ends["decisions"] <= len(answer.alignment["trace"])
        assert mixed > 0
        assert gain != 1e6 or selected == 0


class TestBeams:
    def test_one_beam_is_blockwise(self, client: OpenAI) -> None:
        assert complete(client, {**BLOCKWISE, "beam_width": 1}).choices == (
            complete(client, BLOCKWISE).choices
        )

    @pytest.mark.parametrize("stream", [False, True])
    def test_beam_report_counts_blocks_and_bounds_the_kl(
        self, client: OpenAI, stream: bool
    ) -> None:
        policy = {"method": "blockwise_cd", "k": 2, "m": 8, "beam_width": 3}
        answer = complete(client, policy, max_tokens=64)
        report = answer.alignment
        assert report["decisions"] == len(blocks(answer.choices[0].token_ids, 8))
        bound = math.log(3) + report["decisions"] * math.log(2)
        assert report["kl"]["bound"] == pytest.approx(bound)
        assert report["kl"]["estimator"] == "bound"
        assert report["candidates"] >= 6 * report["decisions"] / 3
        if stream:
            chunks = list(complete(client, policy, max_tokens=64, stream=True))
            assert joined(chunks) == answer.choices[0].text

    def test_score_of_a_beam_is_that_of_its_text(self, client: OpenAI, http: httpx2.Client) -> None:
        policy = {"method": "blockwise_cd", "k": 2, "m": 8, "beam_width": 3}
        answer = complete(client, policy, max_tokens=200)
        assert answer.choices[0].finish_reason == "stop"
        body = {"prompt": answer.choices[0].prompt_token_ids, "responses": [answer.choices[0].text]}
        (scored,) = http.post("/v1/alignment/score", json=body).json()["scores"]
        assert answer.alignment["score"] == pytest.approx(scored["score"], abs=1e-3)


class TestSteps:
    @pytest.mark.parametrize("more", [{}, {"subtrees": 2}, {"beam_width": 2}], ids=str)
    def test_score_of_a_step_is_the_value_after_its_last_token(
        self, client: OpenAI, http: httpx2.Client, more: dict[str, Any]
    ) -> None:
        policy = {**STEPS, **TRACE, **more}
        answer = complete(client, policy, max_tokens=64)
        steps = [next(c for c in candidates if c["chosen"]) for candidates in traced(answer)]
        assert "".join(step["text"] for step in steps) == answer.choices[0].text
        steps = [step for step in steps if step["finish_reason"] is None]
        assert sum("until" in step for step in steps) > 1
        for step in steps:
            assert step["text"].endswith(".") == (step.get("until") == ".")
            assert step["text"].count(".") <= 1
        body = {"prompt": answer.choices[0].prompt_token_ids, "per_token": True}
        body["responses"] = [answer.choices[0].text]
        (scored,) = http.post("/v1/alignment/score", json=body).json()["scores"]
        values = scored["per_token"]["sentiment"]
        ends = accumulate(step["tokens"] for step in steps)
        assert [step["score"] for step in steps] == (
            pytest.approx([values[end - 1] for end in ends], abs=1e-3)
        )


class TestSpeculativeRejection:
    def test_speculative_rejection_draws_fewer_tokens_than_best_of_n(self, client: OpenAI) -> None:
        fields = {"max_tokens": 64, "ignore_eos": True}
        answer = complete(client, {**SPECULATIVE, **TRACE}, **fields)
        assert [len(candidates) for candidates in traced(answer)] == [8, 4, 2, 1]
        assert answer.alignment["candidate_tokens"] == 16 * (8 + 4 + 2 + 1)
        assert answer.alignment["kl"]["bound"] == pytest.approx(kl.best_of_n_bound(8))

    def test_speculative_rejection_with_alpha_zero_draws_all_to_their_end(
        self, client: OpenAI
    ) -> None:
        fields = {"n": 2, "max_tokens": 24, "ignore_eos": True}
        answer = complete(client, {**SPECULATIVE, "alpha": 0.0}, **fields)
        assert answer.alignment["candidate_tokens"] == 2 * 8 * 24

    def test_stream_under_speculative_rejection_matches_the_whole_answer(
        self, client: OpenAI
    ) -> None:
        answer = complete(client, SPECULATIVE, max_tokens=48)
        chunks = list(complete(client, SPECULATIVE, max_tokens=48, stream=True))
        assert joined(chunks) == answer.choices[0].text


class TestCards:
    def test_cards_blocks_are_accepted_or_the_best(self, client: OpenAI) -> None:
        answer = complete(client, {**CARDS, **TRACE}, max_tokens=48)
        for candidates in traced(answer):
            assert 2 <= len(candidates) <= 8
            (taken,) = (c for c in candidates if c["chosen"])
            if len(candidates) < 8:
                assert taken in candidates[-2:]
        assert answer.alignment["kl"]["bound"] == pytest.approx(
            answer.alignment["decisions"] * kl.best_of_n_bound(8)
        )

    def test_cards_with_a_threshold_below_all_is_plain_decoding(self, client: OpenAI) -> None:
        low = complete(client, {**CARDS, "r_star": -9.0, "k": 1}, max_tokens=32)
        assert low.alignment["candidates"] == low.alignment["decisions"]
        assert low.alignment["accepted"] is True

    def test_cards_with_a_threshold_out_of_reach_takes_the_best(self, client: OpenAI) -> None:
        high = complete(client, {**CARDS, "r_star": 99.0, **TRACE}, max_tokens=24)
        assert high.alignment["accepted"] is False
        for candidates in traced(high):
            (taken,) = (c for c in candidates if c["chosen"])
            assert taken["score"] == max(c["score"] for c in candidates)


class TestVotes:
    def test_vote_and_mbr_are_served(self, client: OpenAI) -> None:
        selection = {"vote": {"extract": r"(\w+)\W*$"}}
        policy = {**BEST_OF_N, "selection": selection, "report": "trace"}
        report = complete(client, policy).alignment
        (decision,) = report["trace"]
        answers = [each["answer"] for each in decision["candidates"]]
        (chosen,) = [each for each in decision["candidates"] if each["chosen"]]
        assert report["votes"]["classes"][0]["answer"] == chosen["answer"]
        assert answers.count(chosen["answer"]) == max(map(answers.count, answers))
        assert report["kl"]["estimator"] == "bound"
        central = complete(client, {**BEST_OF_N, "selection": {"mbr": {"beta": 1e6}}})
        assert "votes" not in central.alignment
        assert central.alignment["kl"]["bound"] == report["kl"]["bound"]


class TestPessimistic:
    def test_pessimistic_selection_is_served(self, client: OpenAI) -> None:
        sharp = {**BEST_OF_N, "selection": {"pessimistic": 1e-6}}
        assert complete(client, sharp).choices == complete(client, BEST_OF_N).choices
        answer = complete(client, {**BEST_OF_N, "selection": {"pessimistic": 0.5}})
        assert answer.alignment["kl"]["estimator"] == "selection_entropy"


class TestWorstCase:
    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_worst_case_selection_is_served(self, client: OpenAI, policy: dict[str, Any]) -> None:
        answer = complete(client, {**policy, **WORST})
        assert set(answer.alignment["rewards"]) == set(TWO)
        assert answer.alignment["kl"]["estimator"] == "bound"
        chunks = list(complete(client, {**policy, **WORST}, stream=True))
        assert joined(chunks) == answer.choices[0].text

    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_worst_case_of_one_objective_is_argmax(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        worst = complete(client, {**policy, "selection": WORST["selection"]})
        assert worst.choices == complete(client, policy).choices


@pytest.mark.parametrize(
    ("policy", "param", "words"),
    [
        ({**POISSON, "mu": 8}, "alignment.mu", ["8", "up to 16", "0 to 3."]),
        ({**REJECTION, "max_draws": 17}, "alignment.max_draws", ["17", "1 to 16"]),
        ({**REJECTION, "eta": 0}, "alignment.eta", ["0"]),
        ({**BLOCKWISE, "k": [4, 9]}, "alignment.k.1", ["9", "1 to 8"]),
        ({**BLOCKWISE, "k": []}, "alignment.k", ["at least 1"]),
        ({**BLOCKWISE, "k": 4, "beam_width": 3}, "alignment.beam_width", ["3", "12", "1 to 2"]),
        ({**STEPS, "k": 4, "subtrees": 3}, "alignment.subtrees", ["3", "12", "1 to 2"]),
        ({**STEPS, "until": [""]}, "alignment.until.0", ["''", "1 to 100 characters"]),
        (
            {**BLOCKWISE, "continuation_gain": "auto", "rewards": TWO},
            "alignment.continuation_gain",
            ["'brevity' has none"],
        ),
        ({**BLOCKWISE, "continuation_gain": -1}, "alignment.continuation_gain", ["-1", "'auto'"]),
        ({**SPECULATIVE, "n": 17}, "alignment.n", ["17", "1 to 16"]),
        ({**SPECULATIVE, "alpha": 1.0}, "alignment.alpha", ["1.0", "below 1"]),
        ({**BLOCKWISE, "selection": {"worst_case": {}}}, "alignment.selection", ["lambda", "> 0"]),
    ],
)
def test_invalid_policies_of_search_methods_are_refused(
    client: OpenAI, policy: dict[str, Any], param: str, words: list[str]
) -> None:
    check_refused(client, policy, param, words)
