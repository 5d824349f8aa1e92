"""Speculative rejection: distribution on ab3 against a plain reference, KL, and savings."""

import math
from collections import Counter
from itertools import product
from typing import Any

import pytest

from cdserve import kl
from cdserve.decoders import SpeculativeRejection, SpeculativeRejectionPolicy
from cdserve.errors import PolicyError

from .toy import (
    LENGTH,
    RESPONSES,
    Distribution,
    Limits,
    Tokens,
    Toy,
    assert_follows,
    blockwise,
    collect,
    probability,
    replay,
    sampler,
    value,
)


def policy(**fields: Any) -> SpeculativeRejectionPolicy:
    sent = {"method": "speculative_rejection", "n": 2, "m": 1, **fields}
    return SpeculativeRejectionPolicy.model_validate(sent)


def reference(n: int, m: int, alpha: float) -> Distribution:
    """The distribution, from every way in which n whole responses can fall."""
    found: Counter[Tokens] = Counter()
    for drawn in product(RESPONSES, repeat=n):
        found[returned(drawn, m, alpha)] += math.prod(map(probability, drawn))
    return Distribution(dict(found))


def returned(drawn: tuple[Tokens, ...], m: int, alpha: float) -> Tokens:
    kept, length = list(drawn), 0
    while length < LENGTH:
        kept.sort(key=lambda response: len(response) > length)  # what has ended, first
        length += m
        kept.sort(key=lambda response: value(response[:length]), reverse=True)
        kept = kept[: max(1, len(kept) - math.floor(alpha * len(kept) + 1e-9))]
        if all(len(response) <= length for response in kept):
            break
    return kept[0]


@pytest.mark.parametrize(
    ("n", "m", "alpha"), [(1, 1, 0.5), (2, 1, 0.5), (3, 1, 0.4), (3, 2, 0.34), (2, 1, 0.0)]
)
def test_speculative_rejection_has_the_enumerated_distribution(
    n: int, m: int, alpha: float
) -> None:
    served = replay(lambda toy: SpeculativeRejection.run(policy(n=n, m=m, alpha=alpha), toy, None))
    assert served.responses == pytest.approx(reference(n, m, alpha).responses, abs=1e-12)
    assert served.kl_bound == pytest.approx(kl.best_of_n_bound(n), abs=1e-12)
    assert served.kl <= served.kl_bound == served.kl_estimate


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_sampled_speculative_rejection_follows_the_enumerated_distribution(alpha: float) -> None:
    draw = sampler(seed=8)
    asked = policy(n=4, m=1, alpha=alpha)
    served = (SpeculativeRejection.run(asked, Toy(draw), None) for _ in range(3000))
    assert_follows(served, reference(4, 1, alpha).responses)


def test_expected_reward_is_between_best_of_n_and_fewer_responses() -> None:
    rewards = [reference(3, 1, alpha).reward for alpha in (0.0, 0.34)]
    assert rewards[0] == pytest.approx(blockwise(3, None).reward, abs=1e-12)
    assert blockwise(2, None).reward < rewards[1] < rewards[0]


async def test_each_round_continues_the_remaining_prefixes() -> None:
    counts: list[int] = []
    tape = sampler(seed=1)

    def draw(prefix: Tokens, count: int, m: int | None) -> Any:
        counts.append(len(prefix))
        return [(0,)] * count if len(prefix) < 2 else tape(prefix, count, m)

    await collect(SpeculativeRejection.run(policy(n=8), Toy(draw), None))
    assert Counter(counts) == {0: 1, 1: 4, 2: 2}


def test_n_above_max_n_is_rejected() -> None:
    policy(n=16).check_limits(Limits())
    with pytest.raises(PolicyError, match="this server accepts 1 to 16") as error:
        policy(n=17).check_limits(Limits())
    assert error.value.param == "alignment.n"
    assert policy(n=16).width == 16
