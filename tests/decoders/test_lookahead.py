"""Look-ahead: the distribution by the reward of whole answers, the tokens, and the fields."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve.decoders import BlockwiseCD, BlockwiseCDPolicy, Candidate, Decision, Prefix, Score
from cdserve.decoders.lookahead import rollout_tokens
from cdserve.errors import PolicyError
from cdserve.report import report
from cdserve.testing import TinyModel, distribution

from .test_subtrees import best_of
from .test_until import searched
from .toy import (
    LENGTH,
    A,
    B,
    Draws,
    E,
    Limits,
    Tokens,
    Toy,
    assert_follows,
    blockwise,
    collect,
    ended,
    finish,
    replay,
    sampler,
)


class Answers(Toy):
    """Scores whole answers only, by the number of a; the most likely token is an a."""

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        assert all(prefix[-1].finish_reason is not None for prefix in prefixes)
        totals = [float(self.tokens(prefix).count(A)) for prefix in prefixes]
        return [Score(total, {"a": total}) for total in totals]


def ahead(lookahead: int, tokens: Tokens) -> float:
    """Number of a once the rollout has added its own."""
    more = 0 if ended(tokens) else min(lookahead, LENGTH - len(tokens))
    return float(tokens.count(A) + more)


def policy(**fields: Any) -> BlockwiseCDPolicy:
    sent = {"method": "blockwise_cd", "k": 2, "m": 1, "lookahead": LENGTH, **fields}
    return BlockwiseCDPolicy.model_validate(sent)


def expected(k: int, m: int, lookahead: int, until: Sequence[str] = ()) -> Counter[Tokens]:
    """Distribution of blocks selected by the rollout's number of a."""
    return searched([k], m, until, rank=lambda tokens: ahead(lookahead, tokens))


class TestDistribution:
    @pytest.mark.parametrize(("k", "m", "lookahead"), [(2, 1, 3), (2, 1, 1), (2, 2, 2)])
    def test_search_has_the_enumerated_distribution(self, k: int, m: int, lookahead: int) -> None:
        asked = policy(k=k, m=m, lookahead=lookahead)
        served = replay(lambda toy: BlockwiseCD.run(asked, toy, None), Answers)
        assert served.responses == pytest.approx(expected(k, m, lookahead), abs=1e-12)
        assert served.kl <= served.kl_bound + 1e-12
        assert served.kl_estimate <= served.kl_bound + 1e-12

    def test_rollouts_change_the_distribution(self) -> None:
        assert expected(2, 1, LENGTH) != pytest.approx(expected(2, 1, 0), abs=1e-3)
        assert expected(2, 1, LENGTH) == expected(2, 1, 100)

    @pytest.mark.parametrize("more", [{"subtrees": 2}, {"gate": {"threshold": 9.0, "scouts": 1}}])
    def test_other_searches_look_ahead_too(self, more: dict[str, Any]) -> None:
        asked, draw = policy(until=["b"], m=3, **more), sampler(seed=1)
        one = expected(2, 3, LENGTH, ["b"])
        law = dict(one)
        if "subtrees" in more:
            law = best_of(2, one, lambda tokens: float(tokens.count(A))).responses
        served = (BlockwiseCD.run(asked, Answers(draw, until=["b"]), None) for _ in range(3000))
        assert_follows(served, law)

    def test_block_as_long_as_the_response_is_best_of_n(self) -> None:
        one = replay(lambda toy: BlockwiseCD.run(policy(m=3), toy, None))
        assert one.responses == pytest.approx(blockwise(2, None).responses, abs=1e-12)

    def test_tiny_proposal_rolls_out_the_most_likely_token(self) -> None:
        model = TinyModel(tokens=(0, 1, 2), probabilities=(0.5, 0.3, 0.2), rewards=(1.0, 0.0, 0.0))
        found = distribution(lambda one: BlockwiseCD.run(policy(k=1), one, None), model, 2)
        assert found[0, 2] == pytest.approx(0.5 * 0.2)


class TestTokens:
    def decide(self, *draws: Draws, **fields: Any) -> list[Decision]:
        left = iter(draws)
        made: AsyncIterator[Decision] = BlockwiseCD.run(
            policy(**fields), Answers(lambda *_: next(left)), None
        )
        return finish(collect(made))

    def test_rollouts_are_not_kept_and_their_tokens_are_counted(self) -> None:
        decisions = self.decide([(A,), (B,)], [(E,), (A,)], [(E,), (B,)])
        assert [decision.candidate.token_ids for decision in decisions] == [(A,), (A,), (E,)]
        rollouts = [[score.rollout_tokens for score in one.scores] for one in decisions]
        assert rollouts == [[2, 2], [0, 1], [0, 0]]
        assert report("blockwise_cd", decisions, trace=False)["candidate_tokens"] == 6 + 5

    def test_equal_blocks_share_a_rollout(self) -> None:
        first, *_ = decisions = self.decide([(A,), (A,)], [(E,), (E,)])
        assert [score.rollout_tokens for score in first.scores] == [2, 2]
        assert report("blockwise_cd", decisions, trace=False)["candidate_tokens"] == 4 + 2

    def test_rollout_is_cut_at_its_length(self) -> None:
        first, *_ = self.decide([(A,), (B,)], [(E,), (E,)], lookahead=1)
        assert [score.rollout_tokens for score in first.scores] == [1, 1]
        assert [score.total for score in first.scores] == [2.0, 1.0]

    def test_no_candidate_is_rolled_out_after_the_deadline(self) -> None:
        class Late(Answers):
            async def sample(self, *args: Any) -> Sequence[Candidate]:
                self.deadline_passed = True
                return await super().sample(*args)

        (decision,) = finish(collect(BlockwiseCD.run(policy(), Late(lambda *_: [(A,), (B,)]), 0)))
        assert decision.candidate.finish_reason == "deadline"
        assert [score.rollout_tokens for score in decision.scores] == [0, 0]

    @given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
    def test_most_rollout_tokens_are_those_of_full_blocks(
        self, max_tokens: int, block: int, lookahead: int
    ) -> None:
        ends = range(block, max_tokens, block)
        total = sum(min(lookahead, max_tokens - end) for end in ends)
        assert rollout_tokens(max_tokens, block, lookahead) == total


class TestPolicy:
    def test_most_tokens_include_the_rollouts(self) -> None:
        assert policy(k=4, m=32, lookahead=None).most_tokens(128) == 4 * 128
        assert policy(k=4, m=32, lookahead=16).most_tokens(128) == 4 * (128 + 3 * 16)
        assert policy(k=4, m=32, lookahead=16, until=["b"]).most_tokens(3) == 4 * (3 + 2 + 1)
        assert policy(k=4, m=32, lookahead=999).most_tokens(96) == 4 * (96 + 64 + 32)

    def test_rewards_need_not_score_prefixes(self) -> None:
        assert policy(lookahead=None).values_prefixes
        assert not policy().values_prefixes
        assert policy().compares_prefixes

    def test_estimated_gain_is_refused_with_look_ahead(self) -> None:
        with pytest.raises(PolicyError, match="must be a number with 'lookahead'") as error:
            policy(continuation_gain="auto").check_limits(Limits())
        assert error.value.param == "alignment.continuation_gain"


def test_laws_are_distributions() -> None:
    assert math.fsum(expected(2, 2, 1).values()) == pytest.approx(1.0)
