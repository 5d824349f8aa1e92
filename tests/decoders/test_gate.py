"""Blocks with a gate: the draws, the distribution, the report, and the fields refused with it."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from cdserve import kl
from cdserve.decoders import BlockwiseCD, BlockwiseCDPolicy, Candidate, Decision, Prefix, Score
from cdserve.errors import PolicyError
from cdserve.report import merged, report

from .toy import (
    A,
    B,
    Draws,
    E,
    Limits,
    Tokens,
    Toy,
    blocks,
    blockwise,
    collect,
    ended,
    finish,
    probability,
    replay,
    sampler,
    value,
)

ALWAYS, NEVER = -1e12, 1e12
"""Thresholds that every candidate reaches, and that none does."""


def policy(threshold: float = 0.9, scouts: int = 2, **fields: Any) -> BlockwiseCDPolicy:
    gate = {"threshold": threshold, "scouts": scouts}
    return BlockwiseCDPolicy.model_validate(
        {"method": "blockwise_cd", "k": 3, "m": 1, "gate": gate, **fields}
    )


def decide(proposal: Toy, **fields: Any) -> list[Decision]:
    return finish(collect(BlockwiseCD.run(policy(**fields), proposal, None)))


def tape(*draws: Draws) -> Toy:
    """A proposal whose draws are given."""
    left = iter(draws)

    def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
        drawn = next(left)
        assert len(drawn) == count
        return drawn

    return Toy(draw)


class TestDistribution:
    @pytest.mark.parametrize(
        ("k", "m", "threshold", "scouts", "at_once"),
        [
            (3, 1, 0.9, 2, None),
            (3, 1, 1.2, 1, 1),
            (3, 2, 1.0, 2, 3),
            (2, 3, 0.5, 1, None),
            ([4, 2], 1, 0.9, 2, 1),
        ],
    )
    def test_gated_search_has_the_enumerated_distribution(
        self, k: int | list[int], m: int, threshold: float, scouts: int, at_once: int | None
    ) -> None:
        gate = {"threshold": threshold, "scouts": scouts, "at_once": at_once}
        asked = policy(k=k, m=m, gate=gate)
        served = replay(lambda toy: BlockwiseCD.run(asked, toy, None))
        counts = [k] if isinstance(k, int) else k
        expected, bound = reference(counts, m, threshold, scouts, at_once)
        assert served.responses == pytest.approx(expected, abs=1e-12)
        assert served.kl_bound == pytest.approx(bound, abs=1e-12)
        assert served.kl <= served.kl_bound + 1e-12
        assert served.kl_estimate == pytest.approx(served.kl_bound, abs=1e-12)

    @pytest.mark.parametrize(("threshold", "k", "m"), [(ALWAYS, 2, 1), (NEVER, 3, 2)])
    def test_extreme_thresholds_give_plain_blockwise_decoding(
        self, threshold: float, k: int, m: int
    ) -> None:
        served = replay(lambda toy: BlockwiseCD.run(policy(threshold, m=m), toy, None))
        assert served.responses == pytest.approx(blockwise(k, m).responses, abs=1e-12)


def reference(
    counts: Sequence[int], m: int, threshold: float, scouts: int, at_once: int | None
) -> tuple[dict[Tokens, float], float]:
    """Distribution and mean bound, from all K candidates at every prefix."""
    responses: defaultdict[Tokens, float] = defaultdict(float)
    going: dict[Tokens, float] = {(): 1.0}
    bound = 0.0
    for depth in range(3):
        k = counts[min(depth, len(counts) - 1)]
        ends = [*range(scouts, k, at_once or k), k]
        following: defaultdict[Tokens, float] = defaultdict(float)
        for prefix, reached in going.items():
            bound += reached * kl.best_of_n_bound(k)
            for draws in product(blocks(prefix, m), repeat=k):
                values = [value(prefix + block) for block in draws]
                best = [max(values[:end]) for end in ends]
                seen = next((value for value in best if value >= threshold), best[-1])
                whole = prefix + draws[values.index(seen)]
                mass = reached * math.prod(map(probability, draws))
                (responses if ended(whole) else following)[whole] += mass
        going = following
    return dict(responses), bound


def allowed(decision: Decision) -> int:
    """Most candidates of a decision with a gate."""
    assert decision.draws is not None
    return decision.draws.allowed


class TestDraws:
    """V(a) = .54, V(b) = 1.54, V(E) = 0, V(b E) = 1."""

    def test_good_scout_leaves_out_the_other_candidates(self) -> None:
        first, second = decide(tape([(A,), (B,)], [(E,), (E,)]), threshold=1.0)
        assert [candidate.token_ids for candidate in first.candidates] == [(A,), (B,)]
        assert (first.chosen, first.searched, allowed(first)) == (1, False, 3)
        assert (second.searched, allowed(second)) == (False, 3)

    def test_bad_scouts_are_followed_by_the_other_candidates(self) -> None:
        proposal = tape([(A,), (E,)], [(B,)], [(E,), (E,)], [(E,)])
        first, second = decide(proposal, threshold=1.9)
        assert [candidate.token_ids for candidate in first.candidates] == [(A,), (E,), (B,)]
        assert (first.chosen, first.searched, allowed(first)) == (2, True, 3)
        assert (second.chosen, second.searched, second.tie) == (0, True, True)

    def test_further_candidates_are_drawn_until_one_is_good_enough(self) -> None:
        gate = {"threshold": 1.0, "scouts": 1, "at_once": 2}
        proposal = tape([(A,)], [(E,), (A,)], [(B,), (A,)], [(E,)])
        first, second = decide(proposal, k=7, gate=gate)
        assert [candidate.token_ids for candidate in first.candidates] == [
            *((A,), (E,), (A,)),
            *((B,), (A,)),
        ]
        assert (first.chosen, first.searched, allowed(first)) == (3, False, 7)
        assert (len(second.candidates), second.searched) == (1, False)

    def test_schedule_of_few_candidates_draws_them_at_once(self) -> None:
        draws = [(A,), (E,)], [(E,), (E,)], [(B,)], [(E,)]
        decisions = decide(tape(*draws), threshold=NEVER, k=[4, 1])
        assert [len(decision.candidates) for decision in decisions] == [4, 1, 1]
        assert [decision.kl_bound for decision in decisions] == [kl.best_of_n_bound(4), 0.0, 0.0]
        assert all(decision.searched for decision in decisions)

    def test_candidate_with_a_failed_reward_is_not_good_enough(self) -> None:
        class Failing(Toy):
            async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
                scores = await super().score(prefixes)
                return [replace(score, failed=("b",)) for score in scores]

        (first, *_) = finish(
            collect(BlockwiseCD.run(policy(ALWAYS), Failing(sampler(seed=1)), None))
        )
        assert first.searched

    def test_continuation_gain_does_not_make_a_scout_good_enough(self) -> None:
        fields = {"threshold": 0.9, "continuation_gain": 0.5}
        first, *_ = decide(tape([(A,), (E,)], [(E,)], [(E,), (E,)], [(E,)]), **fields)
        assert first.searched
        assert first.candidate.token_ids == (A,)

    @pytest.mark.parametrize(
        ("draws", "chosen", "reason"), [([(A,), (B,)], 1, "deadline"), ([(E,)] * 2, 0, "stop")]
    )
    def test_deadline_ends_the_draws_and_saves_nothing(
        self, draws: Draws, chosen: int, reason: str
    ) -> None:
        class Late(Toy):
            async def sample(self, *args: Any) -> Sequence[Candidate]:
                self.deadline_passed = True
                return await super().sample(*args)

        (decision,) = finish(collect(BlockwiseCD.run(policy(NEVER), Late(lambda *_: draws), None)))
        assert decision.candidate.finish_reason == reason
        assert (decision.chosen, allowed(decision), decision.searched) == (chosen, 2, True)
        assert decision.kl_bound == kl.best_of_n_bound(3)

    def test_request_holds_admission_for_the_larger_of_both_draws(self) -> None:
        assert policy(scouts=2, k=8).concurrent == 6
        assert policy(scouts=6, k=8).concurrent == 6
        assert policy(scouts=2, k=[8, 3]).concurrent == 6
        assert policy(gate={"threshold": 0, "at_once": 4}, k=8).concurrent == 4
        assert policy(gate={"threshold": 0, "at_once": 1}, k=8).concurrent == 2
        assert policy(scouts=2, k=8).width == 8


class TestReport:
    def decisions(self) -> list[Decision]:
        return decide(tape([(A,), (E,)], [(B,)], [(A,), (B,)], [(E,), (E,)]), threshold=1.9)

    def test_report_counts_decisions_and_saved_candidates(self) -> None:
        decisions = self.decisions()
        assert [decision.searched for decision in decisions] == [True, False, False]
        made = report("blockwise_cd", decisions, trace=True)
        assert made["gate"] == {"searched": 1, "skipped": 2}
        assert made["draws"] == {"made": 7, "allowed": 9}
        assert made["saved_tokens"] == 2
        assert made["candidates"] == 7
        assert [len(decision["candidates"]) for decision in made["trace"]] == [3, 2, 2]
        assert made["kl"]["bound"] == pytest.approx(3 * kl.best_of_n_bound(3))
        assert made["kl"]["estimator"] == "bound"

    def test_merged_report_adds_the_counts_of_all_choices(self) -> None:
        one = report("blockwise_cd", self.decisions(), trace=False)
        both = merged([one, one])
        assert both["gate"] == {"searched": 2, "skipped": 4}
        assert both["draws"] == {"made": 14, "allowed": 18}
        assert both["saved_tokens"] == 4

    def test_report_without_a_gate_has_no_counts_of_one(self) -> None:
        decisions = decide(tape([(E,), (E,), (E,)]), gate=None)
        assert not {"gate", "draws", "saved_tokens"} & set(
            report("blockwise_cd", decisions, trace=False)
        )


class TestPolicy:
    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"selection": {"softmax": 1.0}}, "'selection' unless it is 'argmax'"),
            ({"beam_width": 2}, "'beam_width' unless it is 1"),
            ({"kl_budget": 1.0}, "'kl_budget', the request's or the server's"),
        ],
    )
    def test_fields_of_other_searches_are_refused(self, fields: dict[str, Any], field: str) -> None:
        with pytest.raises(PolicyError) as error:
            policy(**fields).check_limits(Limits())
        assert error.value.param == "alignment.gate"
        assert str(error.value).endswith(f"cannot be combined with {field}")

    @pytest.mark.parametrize("scouts", [3, 4])
    def test_as_many_scouts_as_candidates_are_refused(self, scouts: int) -> None:
        with pytest.raises(PolicyError, match=f"is {scouts}; it must be below k") as error:
            policy(scouts=scouts, k=[3, 2]).check_limits(Limits())
        assert error.value.param == "alignment.gate.scouts"

    def test_two_scouts_are_the_default(self) -> None:
        gate = policy(gate={"threshold": 0.0}).gate
        assert gate is not None
        assert gate.scouts == 2
