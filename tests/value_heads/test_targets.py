"""Every way to learn a value has the value as its fixed point, on the enumerable model "ab3".

1000 responses in exact proportion to their probabilities stand for the model's distribution, so
that a gradient over all of them is that of the population.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.decoders.toy import LENGTH, P, Tokens, blocks, ended, probability, soft_value, value
from tests.decoders.toy import reward as reward_of
from value_heads import (
    binary_cross_entropy,
    bradley_terry,
    cd_q,
    clipped_squared_error,
    lambda_returns,
    linex,
    masked_squared_error,
    mean_over_rollouts,
    monte_carlo,
    soft_expectation,
)

ROWS: list[Tokens] = [y for y in blocks((), None) for _ in range(round(1000 * probability(y)))]
STATES: list[Tokens] = sorted({y[:i] for y in ROWS for i in range(len(y) + 1)})
WIDTH = LENGTH + 1  # positions: the prompt's end, then each token
INDEX = torch.tensor([[STATES.index(y[: min(i, len(y))]) for i in range(WIDTH)] for y in ROWS])
MASK = torch.tensor([[i <= len(y) for i in range(WIDTH)] for y in ROWS])
REWARDS = torch.tensor([[reward_of(y)] for y in ROWS])
ENDED = torch.ones(len(ROWS), dtype=torch.bool)
VISITS = torch.bincount(INDEX[MASK], minlength=len(STATES)).double()[:, None]


def descend(
    loss: Callable[[Tensor], Tensor],
    rate: float = 1.0,
    steps: int = 80,
    start: Tensor | None = None,
) -> Tensor:
    """The table of values, float64 [states, 1], after full-batch gradient descent, from 0 at first.

    Each state's gradient is divided by how often it occurs, so all move at one pace.
    """
    table = torch.zeros(len(STATES), 1, dtype=torch.float64) if start is None else start.clone()
    table.requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(table[INDEX]), table)
        with torch.no_grad():
            table -= rate * gradient * MASK.sum() / VISITS
    return table.detach()


def close(table: Tensor, of: Callable[[Tokens], float]) -> bool:
    expected = [of(state) for state in STATES]
    return table[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_rollout_table_has_the_expected_mean_reward() -> None:
    assert len(ROWS) == 1000
    assert float(REWARDS.mean()) == pytest.approx(0.732)


class TestFixedPoints:
    def test_monte_carlo_fixed_point_is_the_value(self) -> None:
        targets = monte_carlo(REWARDS, MASK)
        assert close(descend(lambda v: masked_squared_error(v, targets, MASK)), value)

    @pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
    def test_td_lambda_fixed_point_is_the_value(self, lam: float) -> None:
        def loss(values: Tensor) -> Tensor:
            targets = lambda_returns(values, REWARDS, MASK, ENDED, lam)
            return masked_squared_error(values, targets, MASK)

        assert close(descend(loss), value)

    def test_clipped_loss_fixed_point_is_the_value(self) -> None:
        """The clip holds a step back, not the place where it ends."""
        targets = monte_carlo(REWARDS, MASK)
        table = torch.zeros(len(STATES), 1, dtype=torch.float64)
        for _ in range(40):
            before = table[INDEX]
            loss = partial(
                lambda v, before: clipped_squared_error(v, before, targets, MASK, 0.2),
                before=before,
            )
            table = descend(loss, rate=0.3, steps=20, start=table)
        assert close(table, value)

    def test_linex_fixed_point_is_the_soft_value(self) -> None:
        targets = monte_carlo(REWARDS, MASK)
        assert close(descend(lambda v: linex(v, targets, MASK, beta=1.0)), soft_value)

    def test_cross_entropy_fixed_point_is_the_mean_reward(self) -> None:
        targets = monte_carlo(0.1 + 0.8 * REWARDS / LENGTH, MASK)
        table = descend(lambda v: binary_cross_entropy(v, targets, MASK), rate=4.0)
        assert close((table.sigmoid() - 0.1) / 0.8 * LENGTH, value)

    @pytest.mark.parametrize("soft", [False, True])
    def test_cd_q_fixed_point_is_the_value(self, soft: bool) -> None:
        """Q(s, z) of every prefix and token, by expected updates; five sweeps are enough."""
        prefixes = [s for s in STATES if not ended(s)]
        pairs = [(s, z) for s in prefixes for z in range(len(P))]
        ends = torch.tensor([ended((*s, z)) for s, z in pairs])
        rewards = torch.tensor([[reward_of((*s, z))] for s, z in pairs])
        behind = torch.tensor([0 if ended((*s, z)) else prefixes.index((*s, z)) for s, z in pairs])
        p = torch.tensor([P]).expand(len(prefixes), -1)
        table = torch.zeros(len(prefixes), 1, len(P), requires_grad=True)
        for _ in range(5):
            expected = (
                soft_expectation(table, p.log(), 1.0) if soft else (table * p[:, None]).sum(-1)
            )
            targets = cd_q(expected[behind], rewards, ends)
            values = table[:, 0].reshape(-1, 1)
            error = masked_squared_error(values, targets, torch.ones_like(ends))
            (gradient,) = torch.autograd.grad(error, table)
            table = (table - gradient * len(pairs)).detach().requires_grad_()
        of = soft_value if soft else value
        expected_values = [of((*s, z)) for s, z in pairs]
        assert table.reshape(-1).tolist() == pytest.approx(expected_values, abs=1e-6)

    def test_bradley_terry_minimiser_has_the_log_odds_of_the_preference(self) -> None:
        """Chosen in three of four pairs: V(a) - V(b) = log 3."""
        a, b = torch.zeros(1, dtype=torch.float64, requires_grad=True), torch.zeros(1)
        for _ in range(200):
            chosen = torch.stack([a, a, a, b])
            rejected = torch.stack([b, b, b, a])
            loss = bradley_terry(chosen, rejected, torch.ones(4, dtype=torch.bool))
            (gradient,) = torch.autograd.grad(loss, a)
            a = (a - 2 * gradient).detach().requires_grad_()
        assert a.item() == pytest.approx(math.log(3), abs=1e-6)


class TestTargets:
    @pytest.mark.parametrize(
        ("lam", "expected"),
        [
            (0.0, [0.6, 0.4, 0.7, 1.0]),
            (0.5, [0.6125, 0.625, 0.85, 1.0]),
            (0.95, [0.937963, 0.95575, 0.985, 1.0]),
            (1.0, [1.0, 1.0, 1.0, 1.0]),
        ],
    )
    def test_lambda_returns_match_worked_values(self, lam: float, expected: list[float]) -> None:
        values = torch.tensor([0.0, 0.5, 0.6, 0.4, 0.7, 0.0])[None, :, None]
        mask = torch.tensor([[False, True, True, True, True, False]])
        found = lambda_returns(values, torch.ones(1, 1), mask, torch.tensor([True]), lam)
        assert found[0, :, 0].tolist() == pytest.approx([0.0, *expected, 0.0], abs=1e-6)

    def test_lambda_returns_equal_gae_returns(self) -> None:
        torch.manual_seed(0)
        values, lam, r = torch.randn(6), 0.9, 1.3
        following = torch.cat([values[1:], torch.tensor([0.0])])
        deltas = following - values
        deltas[-1] += r
        advantage, expected = 0.0, []
        for t in reversed(range(6)):
            advantage = float(deltas[t]) + lam * advantage
            expected.append(advantage + float(values[t]))
        mask = torch.ones(1, 6, dtype=torch.bool)
        # The value of the end itself is the reward's, where GAE takes r and then nothing.
        found = lambda_returns(
            values[None, :, None], torch.tensor([[r]]), mask, torch.tensor([True]), lam
        )
        assert found[0, :, 0].tolist() == pytest.approx(expected[::-1], abs=1e-5)

    def test_lambda_returns_bootstrap_at_a_cut(self) -> None:
        """What comes after it is what V expects there; its reward is not read."""
        values = torch.tensor([[[0.5], [0.6]]])
        mask = torch.ones(1, 2, dtype=torch.bool)
        for lam, expected in ((0.0, [0.6, 0.6]), (1.0, [0.6, 0.6])):
            found = lambda_returns(
                values, torch.tensor([[math.nan]]), mask, torch.tensor([False]), lam
            )
            assert found[0, :, 0].tolist() == pytest.approx(expected)

    def test_target_variances_at_the_root_match_worked_values(self) -> None:
        """Monte Carlo .664176, TD(0) with the true V .321456, CD-Q none."""
        oracle = torch.tensor([[value(s)] for s in STATES])[INDEX]
        carlo = monte_carlo(REWARDS, MASK)[:, 0]
        one_step = lambda_returns(oracle, REWARDS, MASK, ENDED, 0.0)[:, 0]
        assert float(carlo.var(unbiased=False)) == pytest.approx(0.664176, abs=1e-5)
        assert float(one_step.var(unbiased=False)) == pytest.approx(0.321456, abs=1e-5)
        following = torch.tensor([[value((z,)) for z in range(len(P))]])
        expected = (following * torch.tensor(P)).sum(-1, keepdim=True).expand(1000, -1)
        by_expectation = cd_q(expected, REWARDS, ~ENDED)
        assert float(by_expectation.var(unbiased=False)) == pytest.approx(0.0, abs=1e-12)

    def test_no_gradient_flows_through_bootstrapped_values(self) -> None:
        values = torch.rand(2, 3, 1, requires_grad=True)
        mask = torch.ones(2, 3, dtype=torch.bool)
        assert not lambda_returns(
            values, torch.ones(2, 1), mask, torch.tensor([True, False]), 0.5
        ).requires_grad
        assert not cd_q(values[:, 0], torch.ones(2, 1), torch.tensor([True, False])).requires_grad

    def test_mean_over_rollouts_matches_worked_values(self) -> None:
        assert mean_over_rollouts(REWARDS).item() == pytest.approx(0.732)
        assert mean_over_rollouts(REWARDS, beta=1.0).item() == pytest.approx(1.1267598402)
        one = torch.tensor([[[2.0, 5.0]], [[3.0, 1.0]]])
        for beta in (None, 0.5):
            torch.testing.assert_close(mean_over_rollouts(one, beta), one[:, 0])

    @pytest.mark.parametrize(
        ("values", "ends", "lam", "refusal"),
        [
            ((2, 2, 1), torch.ones(2, dtype=torch.bool), 0.5, r"values must be \[2, 3, 1\]"),
            ((2, 3, 1), torch.ones(2), 0.5, r"ended must be bool \[2\], got torch.float32"),
            ((2, 3, 1), torch.ones(3, dtype=torch.bool), 0.5, r"got torch.bool \[3\]"),
            ((2, 3, 1), torch.ones(2, dtype=torch.bool), 1.5, "lam must be from 0 to 1, got 1.5"),
        ],
    )
    def test_lambda_returns_reject_invalid_arguments(
        self, values: tuple[int, ...], ends: Tensor, lam: float, refusal: str
    ) -> None:
        mask = torch.ones(2, 3, dtype=torch.bool)
        with pytest.raises(ValueError, match=refusal):
            lambda_returns(torch.zeros(values), torch.zeros(2, 1), mask, ends, lam)


class TestLosses:
    ONE = torch.ones(1, dtype=torch.bool)

    @pytest.mark.parametrize("beta", [0.0, -1.0])
    def test_beta_must_be_positive(self, beta: float) -> None:
        with pytest.raises(ValueError, match="beta must be positive, got"):
            linex(torch.zeros(1, 1), torch.zeros(1, 1), self.ONE, beta)
        with pytest.raises(ValueError, match="beta must be positive, got"):
            mean_over_rollouts(torch.zeros(2, 1), beta)

    def test_linex_is_half_the_squared_error_near_the_target(self) -> None:
        values, targets = torch.tensor([[1.0]]), torch.tensor([[1.01]])
        found = linex(values, targets, self.ONE, beta=2.0)
        assert found.item() == pytest.approx(0.5 * 0.01**2, rel=1e-2)

    def test_cross_entropy_rejects_targets_outside_0_to_1(self) -> None:
        with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5 to 1\.5"):
            binary_cross_entropy(torch.zeros(1, 1), torch.tensor([[1.5]]), self.ONE)

    def test_masked_out_positions_do_not_change_losses(self) -> None:
        torch.manual_seed(0)
        values, targets = torch.rand(3, 1), torch.rand(3, 1)
        mask = torch.tensor([True, False, True])
        for loss in (
            masked_squared_error,
            binary_cross_entropy,
            bradley_terry,
            lambda v, t, m: linex(v, t, m, 1.0),
            lambda v, t, m: clipped_squared_error(v, torch.zeros_like(v), t, m, 0.1),
        ):
            whole = loss(values[mask], targets[mask], mask[mask])
            torch.testing.assert_close(loss(values, targets, mask), whole)


def test_monte_carlo_targets_are_the_final_reward_at_response_tokens_only() -> None:
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, False, False]])
    targets = monte_carlo(torch.tensor([[0.5, 2.0], [-1.0, 3.0]]), mask)
    assert targets.shape == (2, 5, 2)
    assert targets.dtype == torch.float32
    assert targets[0, :, 0].tolist() == [0, 0.5, 0.5, 0.5, 0]
    assert targets[1, :, 1].tolist() == [0, 0, 3.0, 0, 0]


def test_monte_carlo_rejects_invalid_arguments() -> None:
    with pytest.raises(ValueError, match=r"\[B, G\] and \[B, T\]"):
        monte_carlo(torch.zeros(2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be bool"):
        monte_carlo(torch.zeros(2, 1), torch.ones(2, 3))


def test_masked_squared_error_is_half_the_mean_over_masked_positions() -> None:
    values = torch.tensor([[[1.0, 0.0], [5.0, 5.0]], [[2.0, 1.0], [7.0, 7.0]]], requires_grad=True)
    targets = torch.zeros(2, 2, 2, requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss = masked_squared_error(values, targets, mask)
    assert loss.item() == pytest.approx((1 + 0 + 4 + 1) / 2 / 2)
    loss.backward()
    assert targets.grad is None
    assert torch.equal(values.grad, values.detach() * mask[..., None] / 2)


def test_nan_in_padding_does_not_reach_the_squared_error() -> None:
    values = torch.tensor([[1.0], [float("nan")]], requires_grad=True)
    mask = torch.tensor([True, False])
    loss = masked_squared_error(values, torch.zeros(2, 1), mask)
    loss.backward()
    assert loss.item() == 0.5
    assert values.grad.tolist() == [[1.0], [0.0]]


def test_masked_squared_error_rejects_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="values, targets and mask"):
        masked_squared_error(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="somewhere"):
        masked_squared_error(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool))
