"""The gain that unfinished candidates get where they are compared with ended ones."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cdserve.decoders import (
    BlockwiseCD,
    BlockwiseCDPolicy,
    Decision,
    Outlook,
    Prefix,
    search,
)
from cdserve.decoders.continuation_gain import continuation_gain, expected_maximum
from cdserve.decoders.selection import Argmax

from .toy import A, B, Draws, E, Toy, collect, replay, sampler, text


def policy(**fields: Any) -> BlockwiseCDPolicy:
    return BlockwiseCDPolicy(**{"method": "blockwise_cd", "k": 2, "m": 1, **fields})


async def decode(draws: Sequence[Draws], **fields: Any) -> list[Decision]:
    """The decisions between these draws, one per round."""
    tape = iter(draws)
    return await collect(BlockwiseCD.run(policy(**fields), Measured(lambda *_: next(tape)), None))


class Measured(Toy):
    """ab3 with an outlook of which the best of 2 gains 0.5, and the best of 4 gains 0.7."""

    def outlook(self, tokens: int) -> Outlook:
        return Outlook(tokens=3.0 - tokens, deviation=9.0, gains=[-0.1, 0.5, 0.7])


class TestExpectedMaximum:
    @pytest.mark.parametrize(
        ("count", "expected"),
        [
            (1, 0.0),
            (2, 1 / math.sqrt(math.pi)),
            (3, 1.5 / math.sqrt(math.pi)),
            (4, 3 / math.sqrt(math.pi) * (0.5 + math.asin(1 / 3) / math.pi)),
            (5, 2.5 / math.sqrt(math.pi) * (0.5 + 3 * math.asin(1 / 3) / math.pi)),
        ],
    )
    def test_expected_maximum_has_its_exact_value(self, count: int, expected: float) -> None:
        assert expected_maximum(count) == pytest.approx(expected, abs=1e-12)

    def test_expected_maximum_grows_with_the_count(self) -> None:
        values = [expected_maximum(count) for count in (1, 2, 4, 8, 100, 10_000)]
        assert values == sorted(values)
        assert values[4] == pytest.approx(2.50759, abs=1e-5)


class TestFormula:
    SIZES = (1, 2, 4, 8, 16, 32, 64)
    NORMAL = Outlook(tokens=32.0, deviation=9.0, gains=[0.3 * expected_maximum(n) for n in SIZES])
    """Gains of normal changes with a standard deviation of 0.3."""

    @pytest.mark.parametrize(
        ("tokens", "counts", "expected"),
        [
            (32, [2], 0.3 / math.sqrt(math.pi)),
            (8, [2], 0.3 / math.sqrt(math.pi)),
            (128, [2], 0.6 / math.sqrt(math.pi)),
            (128, [3, 1], 0.6 * 1.5 / math.sqrt(math.pi) / 4),
            (80, [2, 1], 0.3 * math.sqrt(2.5) / math.sqrt(math.pi) / 3),
            (64, [1], 0.0),
            (32_000, [64], 0.3 * expected_maximum(64)),
        ],
    )
    def test_gain_of_normal_changes_is_theirs_times_the_root_of_the_decisions(
        self, tokens: float, counts: list[int], expected: float
    ) -> None:
        outlook = replace(self.NORMAL, tokens=tokens)
        assert continuation_gain(outlook, 32, counts) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(("k", "expected"), [(1, 0.0), (2, 0.0), (4, 0.05), (8, 0.2)])
    def test_gain_of_one_decision_is_the_measured_gain_if_positive(
        self, k: int, expected: float
    ) -> None:
        outlook = Outlook(tokens=32.0, deviation=9.0, gains=[-0.2, -0.1, 0.05, 0.2])
        assert continuation_gain(outlook, 32, [k]) == pytest.approx(expected)

    def test_values_that_are_too_low_promise_nothing_without_a_choice(self) -> None:
        outlook = Outlook(tokens=32.0, deviation=9.0, gains=[0.3, 0.4])
        assert continuation_gain(outlook, 32, [1]) == 0.0

    def test_rewards_of_weight_zero_promise_nothing(self) -> None:
        assert continuation_gain(Outlook(tokens=0.0, deviation=0.0, gains=[]), 32, [4]) == 0.0


class TestSearch:
    async def test_ended_candidate_loses_to_a_live_one_with_the_gain(self) -> None:
        draws: tuple[Draws, ...] = ([(B, E), (A, A)], [(A,), (B,)])
        (ended,) = await decode(draws, m=2, continuation_gain=0.69)
        live = await decode(draws, m=2, continuation_gain=0.71)
        assert text([ended]) == (B, E)
        assert text(live) == (A, A, B)
        assert [score.total for score in live[0].scores] == [1.0, 0.3]

    async def test_candidates_that_have_all_ended_or_all_not_keep_their_order(self) -> None:
        draws: tuple[Draws, ...] = ([(A,), (B,)], [(E,), (E,)])
        for gain in (0, 5.0):
            first, last = await decode(draws, continuation_gain=gain)
            assert (first.chosen, last.chosen, last.tie) == (1, 0, True)

    async def test_gain_counts_in_ties(self) -> None:
        draws: tuple[Draws, ...] = ([(B, E), (A, A)], [(A,), (B,)])
        (decision,) = await decode(draws, m=2, continuation_gain=0.7)
        assert decision.tie
        assert decision.chosen == 0

    @pytest.mark.parametrize("gain", [0, 0.0])
    async def test_gain_of_zero_is_the_search_without_one(self, gain: float) -> None:
        for seed in range(50):
            made = policy(k=3, continuation_gain=gain)
            decisions = await collect(BlockwiseCD.run(made, Toy(sampler(seed)), None))
            plain = search(Toy(sampler(seed)), k=3, m=1, select=Argmax())
            assert decisions == await collect(plain)

    @pytest.mark.parametrize(("k", "chosen"), [(2, 1), ([2, 1], 0)])
    async def test_auto_is_the_gain_of_the_draws_still_to_come(
        self, k: int | list[int], chosen: int
    ) -> None:
        """One more decision of K = 2 is worth 0.5, more than 0.4, and one of K = 1 nothing."""
        draws: tuple[Draws, ...] = ([(B,), (A,)], [(E,), (A,)], [(A,), (A,)])

        class Lower(Measured):
            async def score(self, prefixes: Sequence[Prefix]) -> Any:
                scores = await super().score(prefixes)
                return [
                    type(score)(1.7 if prefix[-1].token_ids == (E,) else score.total, {})
                    for prefix, score in zip(prefixes, scores, strict=True)
                ]

        tape = iter(draws)
        made = policy(k=[2, *k] if isinstance(k, list) else k, continuation_gain="auto")
        run = BlockwiseCD.run(made, Lower(lambda *_: next(tape)), None)
        assert (await collect(run))[1].chosen == chosen

    async def test_beams_with_the_gain_keep_live_prefixes(self) -> None:
        first, later = [(B, E), (A, A), (A, B), (A, E)], [(A,), (A,)]
        without = await decode((first, later), m=2, beam_width=2)
        with_gain = await decode((first, later, later), m=2, beam_width=2, continuation_gain=5)
        assert text(without) == (B, E)
        assert text(with_gain) == (A, B, A)


class TestDistribution:
    @pytest.mark.parametrize("gain", [0, 0.3, 1.0, 100.0])
    def test_kl_of_selection_with_a_gain_is_within_the_bound(self, gain: float) -> None:
        made = policy(continuation_gain=gain)
        served = replay(lambda toy: BlockwiseCD.run(made, toy, None))
        assert sum(served.responses.values()) == pytest.approx(1)
        assert 0 < served.kl <= served.kl_bound

    def test_large_gain_ends_early_only_if_all_candidates_end(self) -> None:
        made = policy(continuation_gain=100.0)
        served = replay(lambda toy: BlockwiseCD.run(made, toy, None))
        assert served.responses[(E,)] == pytest.approx(0.2**2)
