"""``kl_budget``: the bound of a response never passes it, and what is left is best-of-fewer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from cdserve import kl
from cdserve.decoders import (
    BestOfN,
    BestOfNPolicy,
    BlockwiseCD,
    BlockwiseCDPolicy,
    Candidate,
    Decision,
    Prefix,
)
from cdserve.report import report

from .toy import LENGTH, Toy, collect, replay, sampler

BUDGETS = [0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.9, 5.0]


def policy(**fields: Any) -> BlockwiseCDPolicy:
    return BlockwiseCDPolicy.model_validate({"method": "blockwise_cd", "k": 4, "m": 1, **fields})


def greedy(budget: float, k: int) -> list[int]:
    """The candidates of each decision, as the budget is spent."""
    counts: list[int] = []
    for _ in range(LENGTH):
        affordable = [n for n in range(1, k + 1) if n == 1 or kl.best_of_n_bound(n) <= budget]
        counts.append(affordable[-1])
        budget -= kl.best_of_n_bound(counts[-1])
    return counts


def bound(decisions: Sequence[Decision]) -> float:
    made = report("blockwise_cd", decisions, trace=False)
    total: float = made["kl"]["bound"]
    return total


@pytest.mark.parametrize("budget", [0.0, 0.2, 0.4, 0.7])
def test_budgeted_blockwise_has_the_enumerated_distribution(budget: float) -> None:
    """That of the schedule which the budget leaves, whose KL is within it."""
    k = 3
    served = replay(lambda toy: BlockwiseCD.run(policy(k=k, kl_budget=budget), toy, None))
    schedule = policy(k=greedy(budget, k))
    expected = replay(lambda toy: BlockwiseCD.run(schedule, toy, None))
    assert served == expected
    assert served.kl <= budget


@pytest.mark.parametrize("budget", BUDGETS)
async def test_no_response_exceeds_its_kl_budget_and_limited_decisions_are_marked(
    budget: float,
) -> None:
    for seed in range(40):
        made = await collect(BlockwiseCD.run(policy(kl_budget=budget), Toy(sampler(seed)), None))
        assert bound(made) <= budget + 1e-12
        counts = [len(decision.candidates) for decision in made]
        assert counts == greedy(budget, 4)[: len(made)]
        kl_of = report("blockwise_cd", made, trace=False, budget=budget)["kl"]
        assert kl_of["budget"] == budget
        assert kl_of["limited"] == {"decisions": sum(n < 4 for n in counts), "tokens": 0}


@pytest.mark.parametrize(("budget", "n"), [(0.0, 1), (0.19, 1), (0.194, 2), (1.0, 6), (9.0, 16)])
async def test_best_of_n_draws_the_most_candidates_within_the_budget(budget: float, n: int) -> None:
    asked = BestOfNPolicy(method="best_of_n", n=16, kl_budget=budget)
    (decision,) = await collect(BestOfN.run(asked, Toy(sampler(1)), None))
    assert (len(decision.candidates), decision.limited) == (n, n < 16)


class Steered(Toy):
    """ab3 with candidates that cost 0.15 nats a token while their budget lasts."""

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        assert budget is not None
        made = []
        for one in await super().sample(prefixes, count, max_tokens):
            cost = [0.15] * len(one.token_ids)
            while sum(cost) > budget:
                cost.pop()
            made.append(replace(one, kl=sum(cost), unsteered=len(one.token_ids) - len(cost)))
        return made


@pytest.mark.parametrize("budget", BUDGETS)
async def test_steering_gets_the_budget_that_selection_leaves(budget: float) -> None:
    for seed in range(40):
        asked = policy(m=2, kl_budget=budget)
        made = await collect(BlockwiseCD.run(asked, Steered(sampler(seed)), None))
        assert bound(made) <= budget + 1e-12
        steered = sum(decision.candidate.kl or 0.0 for decision in made)
        left = sum(decision.candidate.unsteered for decision in made)
        tokens = sum(len(decision.candidate.token_ids) for decision in made)
        assert steered == pytest.approx(0.15 * (tokens - left))
        assert report("m", made, trace=False, budget=budget)["kl"]["limited"]["tokens"] == left


def test_beam_width_rejects_a_kl_budget() -> None:
    with pytest.raises(ValidationError, match="must be 1 with a kl_budget"):
        policy(beam_width=2, kl_budget=1.0)


@pytest.mark.parametrize("sent", [-0.1, float("nan"), float("inf"), "2"])
def test_invalid_kl_budgets_are_rejected(sent: object) -> None:
    with pytest.raises(ValidationError, match="kl_budget"):
        policy(kl_budget=sent)
