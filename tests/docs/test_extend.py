"""The selection rule of the page on extensions reports a KL that is not below its own."""

import math
from collections.abc import AsyncGenerator

import pytest

from cdserve.decoders import Decision, Proposal, SelectionRule, search
from cdserve.testing import TinyModel, distribution

from .blocks import BLOCKS

MODEL = TinyModel(tokens=(0, 1, 2), probabilities=(0.5, 0.3, 0.2), rewards=(0.0, 1.0, -1.0))


@pytest.fixture
def rule() -> SelectionRule:
    (code,) = [b.code for b in BLOCKS if b.page == "docs/extend.md" and "SecondBest" in b.code]
    names: dict[str, SelectionRule] = {}
    exec(code, names)
    return names["rule"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_documented_rule_reports_an_upper_bound_on_its_kl(rule: SelectionRule, k: int) -> None:
    def decode(proposal: Proposal) -> AsyncGenerator[Decision, None]:
        return search(proposal, k=k, m=None, select=rule)

    selected = distribution(decode, MODEL, max_tokens=1)
    kl = math.fsum(
        q * (math.log(q) - math.log(MODEL.probabilities[response[0]]))
        for response, q in selected.items()
    )
    for p in MODEL.probabilities:
        assert rule.kl_estimate([0.0] * k, math.log(p)) >= kl - 1e-12
        assert rule.kl_estimator(math.log(p)) == "bound"
