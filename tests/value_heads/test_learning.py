"""Targets, loss and fitting, on data whose values are known."""

import itertools
import math

import pytest
import torch

from value_heads import (
    Examples,
    FitOptions,
    HeadConfig,
    ValueHead,
    correlation,
    correlation_by_bucket,
    fit,
    masked_squared_error,
    monte_carlo,
)

# Tabular model "ab3": a, b or E at every step; after three tokens E is forced; r counts the b.
P = {"a": 0.5, "b": 0.3, "E": 0.2}
DEPTH = 3


def ab3_responses() -> dict[str, float]:
    """Return every response with its probability."""
    found = {}
    for length in range(DEPTH + 1):
        for tokens in itertools.product("ab", repeat=length):
            stop = 1.0 if length == DEPTH else P["E"]
            found["".join(tokens) + "E"] = math.prod(P[token] for token in tokens) * stop
    return found


def ab3_value(prefix: str) -> float:
    """Return V*(s) = #b(s) + W_{3 - |s|}; no reward is left once E is said."""
    to_come = (0.0, 0.3, 0.54, 0.732)
    return prefix.count("b") + (0.0 if prefix.endswith("E") else to_come[DEPTH - len(prefix)])


def table_head(states: int) -> ValueHead:
    """Return a head that holds one free value per state of a one-hot encoding."""
    torch.manual_seed(0)
    return ValueHead(
        HeadConfig(
            architecture="linear",
            rewards=("r",),
            hidden_size=states,
            shift=(0.0,),
            scale=(1.0,),
            base_model="table",
        )
    )


def test_every_response_token_gets_the_final_reward_and_nothing_else_does() -> None:
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, False, False]])
    targets = monte_carlo(torch.tensor([[0.5, 2.0], [-1.0, 3.0]]), mask)
    assert targets.shape == (2, 5, 2)
    assert targets.dtype == torch.float32
    assert targets[0, :, 0].tolist() == [0, 0.5, 0.5, 0.5, 0]
    assert targets[1, :, 1].tolist() == [0, 0, 3.0, 0, 0]


def test_monte_carlo_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[B, G\] and \[B, T\]"):
        monte_carlo(torch.zeros(2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be bool"):
        monte_carlo(torch.zeros(2, 1), torch.ones(2, 3))


def test_the_minimiser_of_monte_carlo_targets_is_the_value() -> None:
    total: dict[str, float] = {}
    mass: dict[str, float] = {}
    for response, probability in ab3_responses().items():
        for end in range(len(response) + 1):
            prefix = response[:end]
            mass[prefix] = mass.get(prefix, 0.0) + probability
            total[prefix] = total.get(prefix, 0.0) + probability * response.count("b")
    for prefix, weight in mass.items():
        assert total[prefix] / weight == pytest.approx(ab3_value(prefix), abs=1e-12)


def test_monte_carlo_variance_at_the_root() -> None:
    responses = ab3_responses()
    assert math.fsum(responses.values()) == pytest.approx(1, abs=1e-12)
    mean = sum(p * response.count("b") for response, p in responses.items())
    variance = sum(p * (response.count("b") - mean) ** 2 for response, p in responses.items())
    assert mean == pytest.approx(0.732, abs=1e-12)
    assert variance == pytest.approx(0.664176, abs=1e-9)


def test_fitting_rollouts_finds_the_values_of_the_tabular_model() -> None:
    responses = ab3_responses()
    prefixes = sorted({response[:end] for response in responses for end in range(1, 5)})
    number = {prefix: index for index, prefix in enumerate(prefixes)}
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor(list(responses.values()))
    draws = torch.multinomial(weights, 10_000, replacement=True, generator=generator)
    drawn = [list(responses)[index] for index in draws.tolist()]
    hidden = torch.zeros(len(drawn), DEPTH + 1, len(prefixes))
    mask = torch.zeros(len(drawn), DEPTH + 1, dtype=torch.bool)
    for row, response in enumerate(drawn):
        for end in range(1, len(response) + 1):
            hidden[row, end - 1, number[response[:end]]] = 1
            mask[row, end - 1] = True
    rewards = torch.tensor([[float(response.count("b"))] for response in drawn])
    data = Examples(hidden=hidden, targets=monte_carlo(rewards, mask), mask=mask)
    head = table_head(len(prefixes))
    fit(head, data, data, FitOptions(lr=0.03, batch=1000, max_epochs=30, patience=30))
    with torch.no_grad():
        values = head(torch.eye(len(prefixes)))[:, 0]
    for prefix in prefixes:
        spread = 0.05 if len(prefix) < DEPTH else 0.02
        assert values[number[prefix]].item() == pytest.approx(ab3_value(prefix), abs=spread)


def test_the_loss_is_half_the_mean_squared_error_where_the_mask_is_true() -> None:
    values = torch.tensor([[[1.0, 0.0], [5.0, 5.0]], [[2.0, 1.0], [7.0, 7.0]]], requires_grad=True)
    targets = torch.zeros(2, 2, 2, requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss = masked_squared_error(values, targets, mask)
    assert loss.item() == pytest.approx((1 + 0 + 4 + 1) / 2 / 2)
    loss.backward()
    assert targets.grad is None
    assert torch.equal(values.grad, values.detach() * mask[..., None] / 2)


def test_padding_cannot_spoil_the_loss() -> None:
    values = torch.tensor([[1.0], [float("nan")]], requires_grad=True)
    mask = torch.tensor([True, False])
    loss = masked_squared_error(values, torch.zeros(2, 1), mask)
    loss.backward()
    assert loss.item() == 0.5
    assert values.grad.tolist() == [[1.0], [0.0]]


def test_the_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="values, targets and mask"):
        masked_squared_error(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="somewhere"):
        masked_squared_error(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool))


def linear_data(seed: int) -> Examples:
    """Return examples of V = 2 + h.w with noise; masked positions hold rubbish."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(200, 6, 8, generator=generator)
    mask = torch.rand(200, 6, generator=generator) < 0.7
    exact = 2 + hidden @ torch.linspace(-1, 1, 8)[:, None]
    targets = exact + 0.1 * torch.randn(exact.shape, generator=generator)
    return Examples(hidden=hidden, targets=torch.where(mask[..., None], targets, 1e6), mask=mask)


@pytest.mark.parametrize("mlp_width", [None, 32])
def test_training_recovers_a_linear_value_function(mlp_width: int | None) -> None:
    torch.manual_seed(0)
    head = ValueHead(
        HeadConfig(
            architecture="linear" if mlp_width is None else "mlp",
            rewards=("r",),
            hidden_size=8,
            mlp_width=mlp_width,
            shift=(2.0,),
            scale=(1.5,),
            base_model="none",
        )
    )
    options = FitOptions(lr=0.02, batch=64, max_epochs=60, patience=10)
    report = fit(head, linear_data(0), linear_data(1), options)
    assert min(report.held_out_loss) == report.held_out_loss[report.best_epoch]
    assert min(report.held_out_loss) < 0.01  # the noise alone costs 0.005
    if mlp_width is None:
        torch.testing.assert_close(
            1.5 * head.net.weight[0], torch.linspace(-1, 1, 8), atol=0.02, rtol=0
        )


def test_the_best_held_out_epoch_is_kept_and_training_stops_early() -> None:
    train, held_out = linear_data(0), linear_data(1)
    opposite = Examples(hidden=-held_out.hidden, targets=held_out.targets, mask=held_out.mask)
    head = table_head(8)
    report = fit(head, train, opposite, FitOptions(lr=0.02, max_epochs=50, patience=2))
    assert report.epochs == report.best_epoch + 3
    kept = masked_squared_error(head(opposite.hidden), opposite.targets, opposite.mask)
    assert kept.item() == pytest.approx(report.held_out_loss[report.best_epoch], rel=1e-5)


def test_the_same_seed_gives_the_same_head() -> None:
    heads = [table_head(8), table_head(8)]
    for head in heads:
        fit(head, linear_data(0), linear_data(1), FitOptions(max_epochs=3, seed=7))
    assert torch.equal(heads[0].net.weight, heads[1].net.weight)


def test_correlation() -> None:
    ramp = torch.arange(10.0)
    assert correlation(ramp, 3 * ramp - 1) == pytest.approx(1)
    assert correlation(ramp, -ramp) == pytest.approx(-1)
    assert math.isnan(correlation(ramp, torch.ones(10)))
    with pytest.raises(ValueError, match="same length"):
        correlation(ramp, ramp[1:])
    places = ramp / 10
    signs = torch.where(places < 0.5, 1.0, -1.0)
    assert correlation_by_bucket(ramp, signs * ramp, places, (0.0, 0.5, 1.0)) == [
        pytest.approx(1),
        pytest.approx(-1),
    ]
    assert correlation_by_bucket(ramp, ramp, places, (2.0, 3.0)) == [None]
