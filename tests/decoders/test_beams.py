"""Beam search in blocks: its distribution on ab3 against a plain reference, its KL, its policy."""

import math
from collections import Counter
from functools import cache
from itertools import product
from typing import Any

import pytest

from cdserve.decoders import BlockwiseCD, BlockwiseCDPolicy
from cdserve.errors import PolicyError
from cdserve.policy import parse
from cdserve.report import report

from .toy import (
    A,
    B,
    Distribution,
    E,
    Limits,
    Tokens,
    Toy,
    assert_follows,
    blocks,
    blockwise,
    collect,
    ended,
    probability,
    replay,
    sampler,
    text,
    value,
)


def policy(**fields: Any) -> BlockwiseCDPolicy:
    sent = {"method": "blockwise_cd", "k": 2, "m": 1, "beam_width": 2, **fields}
    return BlockwiseCDPolicy.model_validate(sent)


@cache
def beam_search(kept: tuple[Tokens, ...], width: int, k: tuple[int, ...], m: int) -> Distribution:
    """The distribution of what is returned from these prefixes, by plain recursion.

    Args:
        k: blocks of each prefix, one number a round, the last repeated.
    """
    before = [prefix for prefix in kept if ended(prefix)]
    going = [prefix for prefix in kept if not ended(prefix)]
    if not going:
        return Distribution({kept[0]: 1.0})
    found: Counter[Tokens] = Counter()
    choices = [blocks(prefix, m) for prefix in going for _ in range(k[0])]
    for draws in product(*choices):
        new = [going[i // k[0]] + block for i, block in enumerate(draws)]
        best = sorted(before + new, key=value, reverse=True)[:width]
        p = math.prod(map(probability, draws))
        for response, share in beam_search(tuple(best), width, k[1:] or k, m).responses.items():
            found[response] += p * share
    return Distribution(dict(found))


@pytest.mark.parametrize(("width", "m", "k"), [(2, 2, (1, 2)), (3, 2, (1,)), (2, 3, (1,))])
def test_beam_search_has_the_enumerated_distribution(
    width: int, m: int, k: tuple[int, ...]
) -> None:
    served = replay(
        lambda toy: BlockwiseCD.run(policy(beam_width=width, k=list(k), m=m), toy, None)
    )
    counts = (width * k[0], *(k[1:] or k))
    assert served.responses == pytest.approx(
        beam_search(((),), width, counts, m).responses, abs=1e-12
    )
    assert served.kl < served.kl_bound
    assert served.kl_estimate == served.kl_bound


@pytest.mark.parametrize(("width", "k", "m"), [(2, 2, 1), (2, 2, 2), (3, 1, 1)])
def test_sampled_beam_search_follows_the_enumerated_distribution(
    width: int, k: int, m: int
) -> None:
    draw = sampler(seed=width)
    asked = policy(beam_width=width, k=k, m=m)
    served = (BlockwiseCD.run(asked, Toy(draw), None) for _ in range(3000))
    assert_follows(served, beam_search(((),), width, (width * k, k), m).responses)


def test_beam_width_one_equals_blockwise() -> None:
    served = replay(lambda toy: BlockwiseCD.run(policy(beam_width=1), toy, None))
    assert served.responses == pytest.approx(blockwise(2, 1).responses, abs=1e-12)


def test_one_block_per_beam_equals_best_of_n() -> None:
    """Nothing is ever given up; only ties may go to another."""
    served = replay(lambda toy: BlockwiseCD.run(policy(beam_width=3, k=1, m=2), toy, None))
    assert served.reward == pytest.approx(blockwise(3, None).reward, abs=1e-12)


def test_expected_reward_grows_with_beams() -> None:
    rewards = [beam_search(((),), width, (2 * width, 2), 1).reward for width in (1, 2)]
    assert rewards[0] == pytest.approx(1.469616, abs=5e-7)
    assert rewards[1] > rewards[0] + 0.3


async def test_decisions_follow_the_returned_response() -> None:
    draw = sampler(seed=5)
    for _ in range(60):
        decisions = await collect(BlockwiseCD.run(policy(k=3), Toy(draw), None))
        assert len(decisions) == len(text(decisions))
        assert [d.candidate.finish_reason for d in decisions[:-1]] == [None] * (len(decisions) - 1)
        assert decisions[-1].candidate.finish_reason == "stop"
        bounds = [d.kl_bound for d in decisions]
        assert bounds == [math.log(6)] + [math.log(3)] * (len(decisions) - 1)


async def test_last_decision_lists_candidates_drawn_after_the_response_ended() -> None:
    drawn: list[Tokens] = []
    tape = sampler(seed=11)

    def draw(prefix: Tokens, count: int, m: int | None) -> Any:
        made = tape(prefix, count, m)
        drawn.extend(made)
        return made

    for _ in range(100):
        drawn.clear()
        decisions = await collect(BlockwiseCD.run(policy(), Toy(draw), None))
        made = report("blockwise_cd", decisions, trace=True)
        assert made["candidates"] == len(drawn)
        assert made["candidate_tokens"] == sum(map(len, drawn))
        chosen = [[one["chosen"] for one in step["candidates"]] for step in made["trace"]]
        assert all(sum(one) == 1 for one in chosen)


async def test_decision_is_yielded_once_all_beams_share_its_block() -> None:
    """Of two equal first blocks one has two blocks after it that are the best."""
    tape = iter([[(B,), (B,)], [(B,), (B,)], [(A,), (A,)], [(E,), (E,)], [(E,), (E,)]])
    asked: list[Tokens] = []

    def draw(prefix: Tokens, count: int, m: int | None) -> Any:
        asked.append(prefix)
        return next(tape)

    made = BlockwiseCD.run(policy(k=[1, 2]), Toy(draw), None)
    known = [(len(asked), decision.candidate.token_ids) async for decision in made]
    assert known == [(3, (B,)), (5, (B,)), (5, (E,))]


class TestPolicy:
    def test_width_is_beams_times_largest_k(self) -> None:
        assert policy(k=[4, 2], beam_width=2).width == 8

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"beam_width": 0}, ["alignment.beam_width is 0", "at least 1"]),
            (
                {"beam_width": 2, "selection": {"softmax": 1.0}},
                ["alignment.beam_width is 2", "'argmax'"],
            ),
        ],
    )
    def test_invalid_beam_widths_are_rejected_with_their_field(
        self, fields: dict[str, Any], words: list[str]
    ) -> None:
        sent = {"method": "blockwise_cd", "k": 2, "m": 1, **fields}
        with pytest.raises(PolicyError) as error:
            parse(sent, {"blockwise_cd": BlockwiseCDPolicy}, {})
        assert error.value.param == "alignment.beam_width"
        assert all(word in str(error.value) for word in words)

    def test_beam_width_above_max_k_is_rejected(self) -> None:
        policy(k=4, beam_width=2).check_limits(Limits())
        message = "draws 12 blocks at once; .* up to 8: with k = 4, beam_width from 1 to 2"
        with pytest.raises(PolicyError, match=message) as e:
            policy(k=4, beam_width=3).check_limits(Limits())
        assert e.value.param == "alignment.beam_width"
