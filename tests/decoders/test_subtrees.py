"""Diverse verifier tree search: its distribution on ab3, its KL, its report, its policy."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest

from cdserve.decoders import BlockwiseCD, BlockwiseCDPolicy, Decision
from cdserve.errors import PolicyError
from cdserve.report import report

from .test_until import searched
from .toy import (
    A,
    B,
    Distribution,
    Draws,
    E,
    Limits,
    Tokens,
    Toy,
    assert_follows,
    blockwise,
    collect,
    finish,
    replay,
    reward,
    sampler,
    text,
)


def policy(**fields: Any) -> BlockwiseCDPolicy:
    sent = {"method": "blockwise_cd", "k": 2, "m": 1, "subtrees": 2, **fields}
    return BlockwiseCDPolicy.model_validate(sent)


def best_of(
    subtrees: int, each: Mapping[Tokens, float], rank: Callable[[Tokens], float] = reward
) -> Distribution:
    """Distribution of the best of S independent responses, the first of equal ones."""
    found: Counter[Tokens] = Counter()
    for responses in product(each.items(), repeat=subtrees):
        best = max((y for y, _ in responses), key=rank)
        found[best] += math.prod(p for _, p in responses)
    return Distribution(dict(found))


class TestDistribution:
    @pytest.mark.parametrize(
        ("subtrees", "k", "m", "until"),
        [(2, 2, 1, None), (2, 2, 2, None), (3, 2, 3, ["b"]), (2, 3, 2, ["ab", A])],
    )
    def test_subtrees_have_the_distribution_of_the_best_independent_search(
        self, subtrees: int, k: int, m: int, until: list[str | int] | None
    ) -> None:
        asked = policy(subtrees=subtrees, k=k, m=m, until=until)
        draw = sampler(seed=subtrees)
        expected = best_of(subtrees, searched([k], m, until or ()))
        served = (BlockwiseCD.run(asked, Toy(draw, until=until), None) for _ in range(3000))
        assert_follows(served, expected.responses)

    @pytest.mark.parametrize(("subtrees", "k", "m"), [(2, [1, 2], 2), (3, [1], 2), (2, [1], 1)])
    def test_all_draws_give_the_enumerated_distribution_below_the_bound(
        self, subtrees: int, k: list[int], m: int
    ) -> None:
        asked = policy(subtrees=subtrees, k=k, m=m)
        served = replay(lambda proposal: BlockwiseCD.run(asked, proposal, None))
        expected = best_of(subtrees, searched(k, m))
        assert served.responses == pytest.approx(expected.responses, abs=1e-12)
        assert served.kl < served.kl_bound
        assert served.kl_estimate == served.kl_bound

    def test_one_subtree_is_blockwise(self) -> None:
        served = replay(lambda proposal: BlockwiseCD.run(policy(subtrees=1), proposal, None))
        assert served.responses == pytest.approx(blockwise(2, 1).responses, abs=1e-12)


class TestDecisions:
    def decide(self, *draws: Draws, **fields: Any) -> list[Decision]:
        """Decisions between given blocks, one list for each prefix of each round."""
        left = iter(draws)
        made = BlockwiseCD.run(policy(**fields), Toy(lambda *_: next(left)), None)
        return finish(collect(made))

    def test_better_blocks_of_one_subtree_do_not_replace_those_of_another(self) -> None:
        """V(a) = .54 is below that of both blocks of the other subtree, 1.54."""
        asked: list[Tokens] = []

        def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
            asked.append(prefix)
            return [(A,), (E,), (B,), (B,)] if count == 4 else [(B,), (A,)]

        finish(collect(BlockwiseCD.run(policy(), Toy(draw), None)))
        assert asked == [(), (B,), (A,), (B, B), (A, B)]

    def test_best_response_of_all_subtrees_is_returned_with_its_decisions(self) -> None:
        decisions = self.decide([(A,), (E,), (B,), (A,)], [(E,), (E,)], [(B,), (A,)], [(B,), (E,)])
        assert text(decisions) == (A, B, B)
        bounds = [decision.kl_bound for decision in decisions]
        assert bounds == [math.log(4), math.log(2), math.log(2)]
        made = report("blockwise_cd", decisions, trace=True)
        assert [len(decision["candidates"]) for decision in made["trace"]] == [4, 4, 2]
        assert made["candidates"] == 10

    def test_first_subtree_wins_a_tie(self) -> None:
        decisions = self.decide([(E,), (E,), (A,), (A,)], [(E,), (E,)])
        assert text(decisions) == (E,)

    def test_deadline_in_the_first_draw_returns_the_best_block(self) -> None:
        proposal = Toy(lambda *_: [(A,)])
        proposal.deadline_passed = True
        (decision,) = finish(collect(BlockwiseCD.run(policy(), proposal, None)))
        assert decision.candidate.finish_reason == "deadline"


class TestPolicy:
    def test_width_is_subtrees_times_largest_k(self) -> None:
        assert policy(k=[4, 2], subtrees=2).width == 8
        assert policy().keeps_several

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"beam_width": 2}, "'beam_width' unless it is 1"),
            ({"selection": {"softmax": 1.0}}, "'selection' unless it is 'argmax'"),
            ({"kl_budget": 1.0}, "'kl_budget', the request's or the server's"),
        ],
    )
    def test_fields_of_other_searches_are_refused(self, fields: dict[str, Any], words: str) -> None:
        with pytest.raises(PolicyError) as error:
            policy(**fields).check_limits(Limits())
        assert error.value.param == "alignment.subtrees"
        assert str(error.value).endswith(f"cannot be combined with {words}")

    def test_gate_is_refused_with_subtrees(self) -> None:
        with pytest.raises(PolicyError, match="'subtrees' unless it is 1") as error:
            policy(gate={"threshold": 0.0, "scouts": 1}).check_limits(Limits())
        assert error.value.param == "alignment.gate"

    def test_subtrees_above_max_k_are_rejected(self) -> None:
        policy(k=4).check_limits(Limits())
        message = "draws 12 blocks at once; .* up to 8: with k = 4, subtrees from 1 to 2"
        with pytest.raises(PolicyError, match=message) as error:
            policy(k=4, subtrees=3).check_limits(Limits())
        assert error.value.param == "alignment.subtrees"
