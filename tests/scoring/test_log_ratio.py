"""The log-ratio of a tuned model and its reference is a soft value (arXiv 2404.12358)."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from cdserve.scoring import Floats, Response, token_sums
from cdserve.scoring.programmatic import LogLik, LogRatio
from tests.decoders.toy import RESPONSES, P, Tokens, reward, soft_value

LOG_Z = 1.1267598402


def sums(tokens: Tokens, step: Callable[[Tokens, int], float]) -> Floats:
    return token_sums([np.array([step(tokens[:i], token) for i, token in enumerate(tokens)])])


def base(prefix: Tokens, token: int) -> float:
    return math.log(P[token])


def optimum(prefix: Tokens, token: int) -> float:
    """The optimal policy of reward maximisation at beta = 1: p exp(V_soft), normalised."""
    return math.log(P[token]) + soft_value((*prefix, token)) - soft_value(prefix)


def response(tokens: Tokens) -> Response:
    return Response(
        prompt="",
        text="",
        tokens=len(tokens),
        finished=True,
        values={},
        token_sums={"base": sums(tokens, base), "tuned": sums(tokens, optimum)},
    )


@pytest.mark.parametrize("beta", [1.0, 0.25])
async def test_log_ratio_of_a_response_is_the_reward_up_to_a_constant(beta: float) -> None:
    ratio = LogRatio("tuned", "base", beta)
    found = await ratio.score([response(y) for y in RESPONSES])
    assert found == pytest.approx([beta * (reward(y) - LOG_Z) for y in RESPONSES], abs=1e-9)


async def test_log_ratio_of_a_prefix_is_the_soft_value_up_to_the_same_constant() -> None:
    prefixes = sorted({y[:i] for y in RESPONSES for i in range(1, len(y) + 1)})
    found = await LogRatio("tuned", "base", 1.0).score([response(s) for s in prefixes])
    assert found == pytest.approx([soft_value(s) - LOG_Z for s in prefixes], abs=1e-9)


async def test_loglik_is_the_models_log_likelihood() -> None:
    (found,) = await LogLik("base").score([response((0, 1, 2))])
    assert found == pytest.approx(math.log(0.5 * 0.3 * 0.2))
    (mean,) = await LogLik("base", mean=True).score([response((0, 1, 2))])
    assert mean == pytest.approx(found / 3)


def test_log_ratio_and_loglik_read_their_models() -> None:
    assert LogRatio("tuned", "base", 1.0).token_stats == {"tuned", "base"}
    assert LogLik("ref").token_stats == {"ref"}
