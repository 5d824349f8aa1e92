"""The search loop: how it goes on, what a decision says, and the methods that are its settings."""

import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from cdserve import kl
from cdserve.decoders import (
    Argmax,
    BestOfN,
    BestOfNPolicy,
    BlockwiseCD,
    BlockwiseCDPolicy,
    Candidate,
    Prefix,
    Score,
    search,
)
from cdserve.policy import SoftmaxSelection

from .toy import A, B, Draws, E, Tokens, Toy, collect, first, sampler, text, value


class Drawn(Argmax):
    """The highest score once ``count`` candidates were drawn."""

    def __init__(self, count: int) -> None:
        self._count = count

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int] | None:
        return None if len(scores) < self._count else super().keep(scores, prefixes)


class TestDecisions:
    async def test_first_of_equal_candidates_is_chosen(self) -> None:
        decision = await first((), [(A, E), (B, A), (A, B), (B, A)], 2)
        assert value((B, A)) == value((A, B))
        assert decision.chosen == 1

    @pytest.mark.parametrize(
        ("draws", "tie"),
        [
            ([(B,), (B,), (A,)], True),
            ([(B,), (A,), (A,)], False),
            ([(A,), (B,), (B,)], True),
            ([(B,)], False),
        ],
    )
    async def test_tie_means_the_two_best_scores_are_equal(self, draws: Draws, tie: bool) -> None:
        assert (await first((), draws, 1)).tie is tie

    @pytest.mark.parametrize("k", [4, [2, 2]])
    async def test_candidates_of_equal_tokens_share_one_score(self, k: int | list[int]) -> None:
        class Wavering(Toy):
            """Gives a prefix another last digit each time."""

            asked = 0

            async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
                self.asked += len(prefixes)
                scores = await super().score(prefixes)
                return [replace(one, total=one.total + i * 1e-9) for i, one in enumerate(scores)]

        tape = iter([[(A,), (B,), (A,), (B,)]] if k == 4 else [[(A,), (B,)], [(A,), (B,)]])
        proposal = Wavering(lambda *_: next(tape))
        select = Drawn(4)
        async with aclosing(search(proposal, k=k, m=1, select=select)) as decisions:
            decision = await anext(decisions)
        assert (decision.chosen, decision.tie, proposal.asked) == (1, True, 2)
        assert decision.scores[:2] == decision.scores[2:]

    async def test_search_continues_until_the_chosen_candidate_has_ended(self) -> None:
        tape = iter([[(E,), (A,)], [(E,), (B,)], [(A,), (B,)]])
        proposal = Toy(lambda *_: next(tape))
        decisions = await collect(search(proposal, k=2, m=1, select=Argmax()))
        assert text(decisions) == (A, B, B)
        assert [decision.chosen for decision in decisions] == [1, 1, 1]

    @pytest.mark.parametrize("m", [1, 2, 3])
    async def test_decisions_are_as_many_as_blocks(self, m: int) -> None:
        draw = sampler(seed=3)
        for _ in range(50):
            decisions = await collect(search(Toy(draw), k=3, m=m, select=Argmax()))
            assert len(decisions) == math.ceil(len(text(decisions)) / m)
            assert all(len(d.candidates) == len(d.scores) == 3 for d in decisions)

    async def test_decision_is_yielded_before_the_next_block_is_drawn(self) -> None:
        drawn: list[Tokens] = []

        def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
            drawn.append(prefix)
            return [(A,)] * count

        async with aclosing(search(Toy(draw), k=2, m=1, select=Argmax())) as decisions:
            await anext(decisions)
            assert drawn == [()]
            await anext(decisions)
            assert drawn == [(), (A,)]
        assert drawn == [(), (A,)]

    async def test_kl_bound_counts_the_drawn_candidates(self) -> None:
        decisions = await collect(search(Toy(sampler(seed=4)), k=4, m=1, select=Argmax()))
        assert [d.kl_bound for d in decisions] == [kl.best_of_n_bound(4)] * len(decisions)

    async def test_kl_estimate_uses_the_chosen_candidate(self) -> None:
        decision = await first((), [(A,), (B,), (E,)], 1)
        assert decision.kl_estimate == kl.best_of_n_estimate(math.log(0.3), 3)

    async def test_exceptions_of_the_proposal_propagate(self) -> None:
        def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
            raise ConnectionError("gone")

        with pytest.raises(ConnectionError, match="gone"):
            await collect(search(Toy(draw), k=2, m=1, select=Argmax()))


class TestMethods:
    """The policies are settings of the one loop."""

    async def test_best_of_n_is_the_search_without_a_block_length(self) -> None:
        policy = BestOfNPolicy(method="best_of_n", n=3)
        decisions = await collect(BestOfN.run(policy, Toy(sampler(seed=5)), None))
        assert decisions == await collect(search(Toy(sampler(5)), k=3, m=None, select=Argmax()))
        assert len(decisions) == 1

    async def test_blockwise_cd_is_the_search_with_k_and_m(self) -> None:
        policy = BlockwiseCDPolicy(method="blockwise_cd", k=3, m=1)
        decisions = await collect(BlockwiseCD.run(policy, Toy(sampler(seed=6)), None))
        assert decisions == await collect(search(Toy(sampler(6)), k=3, m=1, select=Argmax()))
        assert len(decisions) == 3

    async def test_blocks_beyond_the_end_equal_best_of_n_bit_for_bit(self) -> None:
        blockwise = BlockwiseCDPolicy(method="blockwise_cd", k=4, m=64)
        whole = BestOfNPolicy(method="best_of_n", n=4)
        for seed in range(50):
            made = await collect(BlockwiseCD.run(blockwise, Toy(sampler(seed)), None))
            assert made == await collect(BestOfN.run(whole, Toy(sampler(seed)), None))

    async def test_seed_reproduces_soft_selection(self) -> None:
        softmax = SoftmaxSelection(softmax=0.5)
        policy = BlockwiseCDPolicy(method="blockwise_cd", k=4, m=1, selection=softmax)
        runs = [
            text(await collect(BlockwiseCD.run(policy, Toy(sampler(i)), seed)))
            for seed in (7, 7, 8)
            for i in range(40)
        ]
        assert runs[:40] == runs[40:80] != runs[80:]


class NoLogprobs(Toy):
    """ab3 where nobody asked for logprobs, and rewards that are not the values."""

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        return [
            Candidate(token_ids=c.token_ids, finish_reason=c.finish_reason)
            for c in await super().sample(prefixes, count, max_tokens)
        ]

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        lengths = [float(len(self.tokens(prefix))) for prefix in prefixes]
        return [Score(-length, {"brevity": -length}) for length in lengths]


async def test_kl_estimate_without_logprobs_is_the_bound() -> None:
    draw = sampler(seed=9)
    (decision,) = await collect(search(NoLogprobs(draw), k=5, m=None, select=Argmax()))
    assert decision.kl_estimate == decision.kl_bound == kl.best_of_n_bound(5)
    assert decision.score.total == max(-len(c.token_ids) for c in decision.candidates)
