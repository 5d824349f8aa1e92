"""``k`` as a schedule: one number of candidates a block, the last repeated."""

from collections import defaultdict
from functools import cache

import pytest

from cdserve import kl
from cdserve.decoders import Argmax, BlockwiseCD, BlockwiseCDPolicy, search
from cdserve.errors import PolicyError

from .toy import (
    Limits,
    Tokens,
    Toy,
    blocks,
    blockwise,
    collect,
    ended,
    probability,
    replay,
    sampler,
    value,
)


def policy(k: object, m: int = 1) -> BlockwiseCDPolicy:
    return BlockwiseCDPolicy.model_validate({"method": "blockwise_cd", "k": k, "m": m})


@cache
def exact(k: tuple[int, ...], m: int) -> dict[Tokens, float]:
    """The distribution by the density of best-of-k at every prefix, ties shared."""
    responses: defaultdict[Tokens, float] = defaultdict(float)

    def go(prefix: Tokens, mass: float, decision: int) -> None:
        if ended(prefix):
            responses[prefix] += mass
            return
        count = k[min(decision, len(k) - 1)]
        options = {block: value(prefix + block) for block in blocks(prefix, m)}
        for block, v in options.items():
            below = sum(probability(b) for b, other in options.items() if other < v - 1e-12)
            level = sum(probability(b) for b, other in options.items() if abs(other - v) <= 1e-12)
            share = ((below + level) ** count - below**count) * probability(block) / level
            go(prefix + block, mass * share, decision + 1)

    go((), 1.0, 0)
    return dict(responses)


@pytest.mark.parametrize(("k", "m"), [((3, 2, 1), 1), ((1, 3), 1), ((2,), 1), ((2, 1), 2)])
def test_scheduled_blockwise_has_the_enumerated_distribution(k: tuple[int, ...], m: int) -> None:
    served = replay(lambda toy: BlockwiseCD.run(policy(list(k), m), toy, None))
    assert served.responses == pytest.approx(exact(k, m), abs=1e-12)
    assert served.kl < served.kl_estimate < served.kl_bound


@pytest.mark.parametrize("k", [1, 2, 4])
def test_constant_schedule_equals_the_number(k: int) -> None:
    assert exact((k, k), 1) == pytest.approx(blockwise(k, 1).responses, abs=1e-12)


async def test_last_count_of_a_schedule_repeats_and_each_decision_has_its_own_bound() -> None:
    draw = sampler(seed=4)
    made = [await collect(BlockwiseCD.run(policy([4, 2]), Toy(draw), None)) for _ in range(20)]
    longest = max(made, key=len)
    assert [len(d.candidates) for d in longest] == [4, 2, 2]
    bounds = [kl.best_of_n_bound(4), kl.best_of_n_bound(2), kl.best_of_n_bound(2)]
    assert [d.kl_bound for d in longest] == bounds


async def test_schedule_of_one_count_equals_the_number_bit_for_bit() -> None:
    for seed in range(20):
        made = await collect(BlockwiseCD.run(policy([3]), Toy(sampler(seed)), None))
        assert made == await collect(search(Toy(sampler(seed)), k=3, m=1, select=Argmax()))


def test_width_is_the_largest_count_of_the_schedule() -> None:
    assert policy([2, 8, 4]).width == 8


def test_every_count_of_a_schedule_is_checked_against_max_k() -> None:
    policy([8, 4, 2]).check_limits(Limits())
    with pytest.raises(PolicyError, match=r"alignment\.k\.1 is 9; .*1 to 8") as caught:
        policy([8, 9, 10]).check_limits(Limits())
    assert caught.value.param == "alignment.k.1"
