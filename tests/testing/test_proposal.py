"""``TinyProposal``: exact distributions of decoders, against those that ``toy`` enumerates."""

from collections.abc import AsyncGenerator

import pytest

from cdserve.decoders import Argmax, Decision, Proposal, search
from cdserve.testing import TinyModel, TinyProposal, distribution
from tests.decoders import toy

AB3 = TinyModel(tokens=(toy.A, toy.B, toy.E), probabilities=toy.P, rewards=(0.0, 1.0, 0.0))


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, None), (2, 1), (2, 2)])
def test_enumerated_distribution_is_that_of_the_toy_model(k: int, m: int | None) -> None:
    def decode(proposal: Proposal) -> AsyncGenerator[Decision, None]:
        return search(proposal, k=k, m=m, select=Argmax())

    responses = distribution(decode, AB3, max_tokens=toy.LENGTH)
    assert responses == pytest.approx(toy.blockwise(k, m).responses)


async def test_sampled_responses_follow_the_model() -> None:
    proposal = TinyProposal(AB3, max_tokens=toy.LENGTH, seed=1)
    drawn = await proposal.sample([()], 4000, None)
    for token, p in zip(AB3.tokens, AB3.probabilities, strict=True):
        share = sum(one.token_ids[0] == token for one in drawn) / len(drawn)
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / len(drawn)) ** 0.5)


def test_value_is_the_mean_of_the_next_values() -> None:
    for written in [(), (1,), (0, 1)]:
        mean = AB3.q(written) @ AB3.probabilities
        assert mean == pytest.approx(AB3.value(written))
