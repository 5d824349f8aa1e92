"""Final rewards: which decisions they make, the scores reported, and the fields refused."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import product
from typing import Any

import pytest

from cdserve import kl
from cdserve.decoders import (
    BlockwiseCD,
    BlockwiseCDPolicy,
    Candidate,
    Decision,
    Prefix,
    Score,
    SpeculativeRejection,
    SpeculativeRejectionPolicy,
)
from cdserve.errors import PolicyError
from cdserve.report import report

from .toy import (
    A,
    B,
    Draws,
    E,
    Limits,
    Tokens,
    Toy,
    blocks,
    collect,
    ended,
    finish,
    probability,
    replay,
    value,
)


class TwoRewards(Toy):
    """V* of the number of b for all prefixes; the number of a for ended ones."""

    async def score_final(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        assert all(prefix[-1].finish_reason is not None for prefix in prefixes)
        totals = [float(self.tokens(prefix).count(A)) for prefix in prefixes]
        return [Score(total, {"a": total}) for total in totals]


def policy(**fields: Any) -> BlockwiseCDPolicy:
    sent = {"method": "blockwise_cd", "k": 2, "m": 1, "final_rewards": {"a": 1.0}, **fields}
    return BlockwiseCDPolicy.model_validate(sent)


def reference(k: int, m: int, before: Tokens = ()) -> Counter[Tokens]:
    """Distribution of responses where the number of a decides between ended candidates."""
    if ended(before):
        return Counter({before: 1.0})
    found: Counter[Tokens] = Counter()
    for draws in product(blocks(before, m), repeat=k):
        whole = [before + block for block in draws]
        final = all(map(ended, whole))
        best = max(whole, key=lambda tokens: tokens.count(A) if final else value(tokens))
        p = math.prod(map(probability, draws))
        for response, share in reference(k, m, best).items():
            found[response] += p * share
    return found


class TestDistribution:
    @pytest.mark.parametrize(("k", "m"), [(2, 1), (2, 2)])
    def test_search_has_the_enumerated_distribution(self, k: int, m: int) -> None:
        served = replay(lambda toy: BlockwiseCD.run(policy(k=k, m=m), toy, None), TwoRewards)
        assert served.responses == pytest.approx(reference(k, m), abs=1e-12)
        assert served.kl <= served.kl_bound + 1e-12
        assert served.kl_estimate == pytest.approx(served.decisions * kl.best_of_n_bound(k))

    def test_whole_responses_are_selected_by_the_final_rewards(self) -> None:
        served = replay(lambda toy: BlockwiseCD.run(policy(m=3), toy, None), TwoRewards)
        assert served.responses == pytest.approx(reference(2, 3), abs=1e-12)


class TestDecisions:
    def decide(self, *draws: Draws, **fields: Any) -> list[Decision]:
        left = iter(draws)
        made: AsyncIterator[Decision] = BlockwiseCD.run(
            policy(**fields), TwoRewards(lambda *_: next(left)), None
        )
        return finish(collect(made))

    def test_ended_and_unfinished_candidates_are_compared_by_rewards(self) -> None:
        draws: list[Draws] = [[(B,), (A,)], [(E,), (A,)], [(E,), (E,)]]
        decisions = self.decide(*draws)
        totals = [[score.total for score in decision.scores] for decision in decisions]
        assert totals[1] == pytest.approx([1.0, 1.3])
        assert decisions[1].chosen == 1
        assert totals[2] == [1.0, 1.0]

    def test_selected_candidate_that_ends_has_its_final_score(self) -> None:
        """V(b E) = 1 is above V(a a) = .3."""
        decisions = self.decide([(B, E), (A, A)], m=2)
        (decision,) = decisions
        assert [score.total for score in decision.scores] == pytest.approx([0.0, 0.3])
        assert decision.chosen == 0
        made = report("blockwise_cd", decisions, trace=False)
        assert made["rewards"] == {"b": 1.0, "a": 0.0}
        assert made["score"] == 0.0

    def test_last_choice_between_beams_is_by_the_final_rewards(self) -> None:
        """Both beams end in one round with an unfinished candidate, which is dropped."""
        decisions = self.decide(
            [(B,), (B,), (A,), (A,)],
            [(B,), (A,)],
            [(A,), (E,)],
            [(B,), (E,)],
            [(A,), (E,)],
            beam_width=2,
        )
        tokens = tuple(token for each in decisions for token in each.candidate.token_ids)
        assert tokens == (B, A, A)
        assert report("blockwise_cd", decisions, trace=False)["score"] == 2.0

    def test_deadline_leaves_the_choice_to_the_final_rewards(self) -> None:
        class Late(TwoRewards):
            async def sample(self, *args: Any) -> Sequence[Candidate]:
                self.deadline_passed = True
                return await super().sample(*args)

        (decision,) = finish(collect(BlockwiseCD.run(policy(), Late(lambda *_: [(B,), (A,)]), 0)))
        assert decision.candidate.token_ids == (A,)
        assert decision.score.total == 1.0

    def test_speculative_rejection_drops_by_rewards_and_selects_by_the_final_ones(self) -> None:
        sent = {"method": "speculative_rejection", "n": 3, "m": 1, "alpha": 0.4}
        asked = SpeculativeRejectionPolicy.model_validate({**sent, "final_rewards": {"a": 1.0}})
        left = iter([[(B,), (A,), (B,)], [(A,)], [(B,)], [(E,)], [(E,)]])
        made: AsyncIterator[Decision] = SpeculativeRejection.run(
            asked, TwoRewards(lambda *_: next(left)), None
        )
        decisions = finish(collect(made))
        tokens = tuple(token for each in decisions for token in each.candidate.token_ids)
        assert tokens == (B, A, E)
        assert decisions[-1].score.rewards == {"b": 1.0, "a": 1.0}


def test_gate_is_refused_with_final_rewards() -> None:
    with pytest.raises(PolicyError, match="'final_rewards', whose scale") as error:
        policy(gate={"threshold": 0.0, "scouts": 1}).check_limits(Limits())
    assert error.value.param == "alignment.gate"
