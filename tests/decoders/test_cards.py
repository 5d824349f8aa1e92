"""Cascade reward sampling: the published threshold, the distribution on ab3, rejected blocks."""

import math
import random
from collections import defaultdict
from itertools import islice, repeat
from typing import Any

import pytest
from pydantic import ValidationError

from cdserve import kl
from cdserve.decoders import Cards, CardsPolicy, Threshold
from cdserve.decoders.cards import thresholds
from cdserve.errors import PolicyError

from .toy import (
    LENGTH,
    Limits,
    Tokens,
    Toy,
    assert_follows,
    blocks,
    collect,
    ended,
    probability,
    sampler,
    value,
)


def policy(**fields: Any) -> CardsPolicy:
    sent = {"method": "cards", "m": 1, "r_star": 2.0, "max_draws": 8, "k": 1, **fields}
    return CardsPolicy.model_validate(sent)


def test_thresholds_match_published_values() -> None:
    """r* 8.5, alpha 0.5; with r(x) = 1 the first threshold is 4.75."""
    levels = thresholds(policy(r_star=8.5, rise=4), 1.0)
    assert list(islice(levels, 6)) == [4.75, 5.6875, 6.625, 7.5625, 8.5, 8.5]


def exact(asked: CardsPolicy) -> dict[Tokens, float]:
    """The distribution where there is no end to the draws."""
    responses: defaultdict[Tokens, float] = defaultdict(float)
    levels = list(islice(thresholds(asked, value(())), LENGTH))

    def go(prefix: Tokens, mass: float, t: int) -> None:
        if ended(prefix):
            responses[prefix] += mass
            return
        passing = {
            block: probability(block)
            * math.exp(min(0.0, (value(prefix + block) - levels[t]) / asked.beta))
            for block in blocks(prefix, asked.m)
        }
        total = math.fsum(passing.values())
        for block, share in passing.items():
            go(prefix + block, mass * share / total, t + 1)

    go((), 1.0, 0)
    return dict(responses)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("m", [1, 2])
def test_cards_has_the_enumerated_distribution(k: int, m: int) -> None:
    draw = sampler(seed=k)
    asked = policy(k=k, m=m, max_draws=400, rise=2)
    served = (Cards.run(asked, Toy(draw), i) for i in range(3000))
    assert_follows(served, exact(asked))


async def test_best_block_is_chosen_if_none_is_accepted() -> None:
    asked = policy(r_star=1e6, max_draws=6, k=2)
    for seed in range(20):
        for decision in await collect(Cards.run(asked, Toy(sampler(seed)), seed)):
            assert decision.accepted is False
            assert len(decision.candidates) == 6
            assert decision.score.total == max(score.total for score in decision.scores)
            assert decision.kl_bound == kl.best_of_n_bound(6)


async def test_threshold_below_all_values_gives_the_proposal() -> None:
    for seed in range(20):
        for decision in await collect(Cards.run(policy(r_star=-1e6), Toy(sampler(seed)), seed)):
            assert (len(decision.candidates), decision.accepted) == (1, True)
            assert decision.kl_estimate == 0.0


def test_max_draws_above_max_k_is_rejected() -> None:
    with pytest.raises(PolicyError, match=r"max_draws is 9; this server accepts 1 to 8"):
        policy(max_draws=9).check_limits(Limits())
    policy(max_draws=8).check_limits(Limits())


@pytest.mark.parametrize("sent", [{"max_draws": 6, "k": 4}, {"max_draws": 2, "k": 4}])
def test_max_draws_must_be_a_multiple_of_k(sent: dict[str, int]) -> None:
    message = f"it must divide max_draws, which is {sent['max_draws']}"
    with pytest.raises(ValidationError, match=message):
        policy(**sent)
    assert policy(max_draws=12, k=4).width == 12


def test_decision_after_one_that_the_deadline_ended_is_made() -> None:
    rule = Threshold(1.0, repeat(0.0), 8, random.Random(0))
    assert rule.choose([-99.0, -99.0]) is None  # the search takes the best, which goes on
    assert rule.choose([-99.0]) is None
    assert rule.choose([-99.0, 0.0]) == 1
