"""Fitting heads: what they come to, on the enumerable model "ab3" and on a linear one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.decoders.toy import Tokens, soft_value, value
from value_heads import (
    Base,
    ControlledQ,
    FitOptions,
    Head,
    HeadConfig,
    Method,
    MonteCarlo,
    QHead,
    Rollouts,
    TemporalDifference,
    ValueHead,
    fit,
)

from .ab3 import BASE, q_head, rollouts, value_head, values_of

LONG = FitOptions(lr=0.1, batch=512, max_epochs=150, patience=150)
SOFT = {"kind": "soft", "beta": 1.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny here: threads would wait for each other, all the more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def furthest(head: Head, exact: dict[Tokens, float]) -> float:
    return max(abs(found - exact[prefix]) for prefix, found in values_of(head).items())


class TestMethods:
    """Fits on 1000 responses in exact proportion end at V*, or at the soft value."""

    VALUES = {prefix: value(prefix) for prefix in values_of(value_head())}  # noqa: RUF012
    SOFT_VALUES = {prefix: soft_value(prefix) for prefix in VALUES}  # noqa: RUF012

    @pytest.mark.parametrize("method", [MonteCarlo(), *map(TemporalDifference, (0.0, 0.95))])
    @pytest.mark.parametrize("kind", [value_head, q_head])
    def test_fit_learns_mean_values(self, method: Method, kind: type[Head]) -> None:
        torch.manual_seed(0)
        head = kind()
        fit(head, [rollouts()], [rollouts()], method, LONG)
        assert furthest(head, self.VALUES) < 5e-3

    def test_fit_by_cd_q_learns_q_values(self) -> None:
        torch.manual_seed(0)
        head = q_head()
        fit(head, [rollouts()], [rollouts()], ControlledQ(), LONG, base=BASE)
        assert furthest(head, self.VALUES) < 5e-3

    def test_fit_by_cd_q_of_a_value_head_uses_its_teacher(self) -> None:
        torch.manual_seed(0)
        teacher, head = q_head(), value_head()
        fit(teacher, [rollouts()], [rollouts()], MonteCarlo(), LONG)
        fit(head, [rollouts()], [rollouts()], ControlledQ(teacher), LONG, base=BASE)
        assert furthest(head, self.VALUES) < 5e-3

    @pytest.mark.parametrize(
        ("kind", "method"),
        [(value_head, MonteCarlo()), (q_head, MonteCarlo()), (q_head, ControlledQ())],
    )
    def test_fit_learns_soft_values(self, kind: type[Head], method: Method) -> None:
        torch.manual_seed(0)
        head = kind(**SOFT)  # type: ignore[arg-type]
        fit(head, [rollouts()], [rollouts()], method, LONG, base=BASE)
        assert furthest(head, self.SOFT_VALUES) < 5e-3

    def test_fit_of_a_sigmoid_head_learns_mean_values(self) -> None:
        torch.manual_seed(0)
        head = value_head(output="sigmoid", scale=(4.0,), shift=(-0.5,))
        fit(head, [rollouts()], [rollouts()], options=LONG)
        assert furthest(head, self.VALUES) < 5e-3

    def test_fit_with_a_clip_learns_the_same_values(self) -> None:
        torch.manual_seed(0)
        head = value_head()
        options = FitOptions(lr=0.1, batch=512, max_epochs=150, patience=150, clip=0.1)
        fit(head, [rollouts()], [rollouts()], options=options)
        assert furthest(head, self.VALUES) < 5e-3

    @pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
    def test_fit_by_td_keeps_exact_values(self, lam: float) -> None:
        """At V* the targets of each state average to V*: to 1e-6, no fit between."""
        head = exact(value_head(), self.VALUES)
        data = rollouts()
        targets = TemporalDifference(lam).targets(head, data, None)
        one_hot = data.states[data.after]
        means = (one_hot.T @ targets)[:, 0] / one_hot.sum(0).clamp(min=1)
        seen = one_hot.any(0)
        torch.testing.assert_close(means[seen], head.net.bias + head.net.weight[0, seen])

    def test_only_td_and_cd_q_learn_from_cut_responses(self) -> None:
        for method, learns in ((MonteCarlo(), False), (TemporalDifference(), True)):
            cut = rollouts(cut=True)
            none_ended = Rollouts(**{**vars_of(cut), "ended": torch.zeros_like(cut.ended)})
            head = value_head()
            if learns:
                fit(head, [none_ended], [rollouts()], method, FitOptions(max_epochs=1))
            else:
                with pytest.raises(ValueError, match="no response to train on ended by itself"):
                    fit(head, [none_ended], [rollouts()], method)

    def test_fit_rejects_held_out_responses_without_an_end(self) -> None:
        cut = rollouts(cut=True)
        none_ended = Rollouts(**{**vars_of(cut), "ended": torch.zeros_like(cut.ended)})
        with pytest.raises(ValueError, match="no held-out response ended"):
            fit(value_head(), [rollouts()], [none_ended])

    @pytest.mark.parametrize(
        ("head", "method", "base", "refusal"),
        [
            (value_head(), ControlledQ(), BASE, "head or teacher, got architecture linear"),
            (q_head(), ControlledQ(), None, "needs the base model's output layer, got none"),
            (
                value_head(),
                ControlledQ(q_head(rewards=("s",))),
                BASE,
                r"teacher's rewards must be the head's, \('r',\), got \('s',\)",
            ),
            (value_head(**SOFT), TemporalDifference(), None, "kind mean, got a head of kind soft"),
        ],
    )
    def test_fit_rejects_heads_that_do_not_suit_the_method(
        self, head: Head, method: Method, base: Base | None, refusal: str
    ) -> None:
        with pytest.raises(ValueError, match=refusal):
            fit(head, [rollouts()], [rollouts()], method, base=base)

    def test_fit_of_a_tied_head_uses_the_output_layer(self) -> None:
        torch.manual_seed(0)
        data = rollouts()
        base = Base(lm_head=torch.randn(3, data.states.shape[1]))
        config = HeadConfig(
            architecture="tied",
            rewards=("r",),
            hidden_size=data.states.shape[1],
            vocab_size=3,
            shift=(0.0,),
            scale=(1.0,),
            base_model="ab3",
        )
        with pytest.raises(ValueError, match="a tied head needs"):
            fit(QHead(config), [data], [data])
        report = fit(QHead(config), [data], [data], options=LONG, base=base)
        assert report.held_out_loss[-1] < 0.8 * report.held_out_loss[0]


def exact(head: ValueHead, values: dict[Tokens, float]) -> ValueHead:
    """The head with the values of the states in its weights."""
    from .ab3 import STATES

    with torch.no_grad():
        head.net.bias.zero_()
        head.net.weight[0] = torch.tensor([values.get(s, value(s)) for s in STATES])
    return head


def vars_of(data: Rollouts) -> dict[str, torch.Tensor]:
    names = ("states", "tokens", "lengths", "rewards", "ended", "prompts")
    return {name: getattr(data, name) for name in names}


def linear_data(seed: int) -> Rollouts:
    """Responses of one token whose reward is 2 + h.w with noise."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(800, 2, 8, generator=generator)
    rewards = 2 + states[:, 1] @ torch.linspace(-1, 1, 8)[:, None]
    return Rollouts.padded(
        states=states,
        tokens=torch.zeros(800, 1, dtype=torch.long),
        mask=torch.ones(800, 1, dtype=torch.bool),
        rewards=rewards + 0.1 * torch.randn(rewards.shape, generator=generator),
        ended=torch.ones(800, dtype=torch.bool),
    )


def linear_head(mlp_width: int | None = None) -> ValueHead:
    torch.manual_seed(0)
    return ValueHead(
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


@pytest.mark.parametrize("mlp_width", [None, 32])
def test_fit_recovers_a_linear_value_function(mlp_width: int | None) -> None:
    head = linear_head(mlp_width)
    options = FitOptions(lr=0.02, batch=64, max_epochs=60, patience=10)
    report = fit(head, [linear_data(0)], [linear_data(1)], options=options)
    assert min(report.held_out_loss) == report.held_out_loss[report.best_epoch]
    assert min(report.held_out_loss) < 0.01  # the noise alone costs 0.005
    if mlp_width is None:
        torch.testing.assert_close(
            1.5 * head.net.weight[0], torch.linspace(-1, 1, 8), atol=0.02, rtol=0
        )


def by_position(architecture: Any, **fields: Any) -> HeadConfig:
    return HeadConfig(
        architecture=architecture,
        rewards=("length",),
        hidden_size=4,
        position_limit=10,
        shift=(0.0,),
        scale=(22.0,),
        base_model="none",
        **fields,
    )


@pytest.mark.parametrize(
    "config",
    [
        by_position("mlp", mlp_width=16),
        by_position("mlp", mlp_width=16, output="sigmoid"),
        by_position("linear"),
        by_position("lowrank", rank=2, vocab_size=1),
    ],
    ids=lambda config: f"{config.architecture} {config.output}",
)
def test_fit_with_positions_learns_a_value_that_no_state_shows(config: HeadConfig) -> None:
    """The reward is the length, uniform from 1 to 10: V after t tokens is (t + 10) / 2."""
    lengths = torch.arange(1, 11)
    data = Rollouts(
        states=torch.zeros(int(lengths.sum()) + 10, 4),
        tokens=torch.zeros(int(lengths.sum()), dtype=torch.long),
        lengths=lengths,
        rewards=lengths[:, None].float(),
        ended=torch.ones(10, dtype=torch.bool),
        prompts=torch.zeros(10, dtype=torch.long),
    )
    torch.manual_seed(0)
    head = QHead(config) if config.architecture == "lowrank" else ValueHead(config)
    fit(head, [data], [data], options=FitOptions(lr=0.02, max_epochs=1000, patience=1000))
    values = head.rollout_values(data)[data.owner == 9, 0]
    torch.testing.assert_close(values, torch.arange(11, 21) / 2, atol=0.05, rtol=0)


@pytest.mark.parametrize(("weight", "mean"), [(1, 1 / 5), (5, 5 / 13)])
def test_end_weight_counts_the_last_tokens_of_ended_responses(weight: int, mean: float) -> None:
    """No state tells four tokens with reward 0 from one with reward 1, so V is their mean."""
    data = Rollouts(
        states=torch.zeros(5 + 2, 4),
        tokens=torch.zeros(5, dtype=torch.long),
        lengths=torch.tensor([4, 1]),
        rewards=torch.tensor([[0.0], [1.0]]),
        ended=torch.ones(2, dtype=torch.bool),
        prompts=torch.zeros(2, dtype=torch.long),
    )
    head = ValueHead(replace(by_position("linear"), position_limit=None, scale=(1.0,)))
    options = FitOptions(lr=0.02, max_epochs=400, patience=400, end_weight=weight)
    fit(head, [data], [data], options=options)
    assert float(head.rollout_values(data)[0]) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("weight", [0, -1, 1.9])
def test_end_weight_must_be_a_positive_integer(weight: Any) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {weight}"):
        FitOptions(end_weight=weight)


def test_cd_q_targets_have_the_position_after_the_token() -> None:
    """Q is 22 t / 10 after t response tokens, whatever the state and the next token."""
    data = linear_data(0).split(0.01)[0]
    head = QHead(by_position("lowrank", rank=2, vocab_size=3))
    head = QHead(replace(head.config, hidden_size=8))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.state.weight[0, -1] = 1.0
    base = Base(lm_head=torch.randn(3, 8))
    cut = Rollouts(**{**vars_of(data), "ended": torch.zeros_like(data.ended)})
    targets = ControlledQ().targets(head, cut, base)
    torch.testing.assert_close(targets, torch.full((8, 1), 2.2))
    torch.testing.assert_close(head.rollout_values(cut), torch.zeros(8, 1))


def test_fit_treats_shards_as_one_training_set() -> None:
    """Two halves, of which each alone misses a part of the state space, make the whole."""
    parts = linear_data(0).split(0.5)
    head = linear_head()
    options = FitOptions(lr=0.02, batch=64, max_epochs=60, patience=10)
    report = fit(head, parts, [linear_data(1)], options=options)
    assert min(report.held_out_loss) < 0.01


def test_fit_keeps_the_best_held_out_epoch_and_stops_early() -> None:
    held_out = linear_data(1)
    opposite = Rollouts(**{**vars_of(held_out), "states": -held_out.states})
    head = linear_head()
    options = FitOptions(lr=0.02, max_epochs=50, patience=2)
    report = fit(head, [linear_data(0)], [opposite], options=options)
    assert report.epochs == report.best_epoch + 3
    errors = head.rollout_values(opposite).detach() - opposite.rewards
    kept = 0.5 * float(errors.square().mean())
    assert kept == pytest.approx(report.held_out_loss[report.best_epoch], rel=1e-5)


def test_same_seed_gives_the_same_head() -> None:
    heads = [linear_head(), linear_head()]
    for head in heads:
        fit(head, [linear_data(0)], [linear_data(1)], options=FitOptions(max_epochs=3, seed=7))
    assert torch.equal(heads[0].net.weight, heads[1].net.weight)


class Stopped(Exception):
    pass


class Failing:
    """Monte Carlo that dies at its n-th visit to a shard."""

    cut_responses = False

    def __init__(self, at: int) -> None:
        self.left = at

    def __str__(self) -> str:
        return str(MonteCarlo())

    def check(self, head: Head, base: Base | None) -> None:
        pass

    def targets(self, head: Head, data: Rollouts, base: Base | None) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return MonteCarlo().targets(head, data, base)


def test_resumed_fit_equals_an_uninterrupted_fit(tmp_path: Path) -> None:
    train, held_out = linear_data(0).split(0.5), [linear_data(1)]
    options = FitOptions(batch=64, max_epochs=6)
    whole, parts = linear_head(), linear_head()
    expected = fit(whole, train, held_out, options=options)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):  # in its fourth epoch
        fit(parts, train, held_out, Failing(7), options, checkpoint=checkpoint)
    again = linear_head()
    report = fit(again, train, held_out, MonteCarlo(), options, checkpoint=checkpoint)
    assert report == expected
    assert torch.equal(again.net.weight, whole.net.weight)


def test_fit_rejects_a_checkpoint_of_another_fit(tmp_path: Path) -> None:
    data, checkpoint = [linear_data(0)], tmp_path / "checkpoint.pt"
    fit(linear_head(), data, data, options=FitOptions(max_epochs=1), checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"max_epochs=1.*; this fit is .*max_epochs=2"):
        fit(linear_head(), data, data, options=FitOptions(max_epochs=2), checkpoint=checkpoint)


def test_fit_rejects_a_clip_for_a_soft_head() -> None:
    head = value_head(**SOFT)
    with pytest.raises(ValueError, match="clip is of the squared error"):
        fit(head, [rollouts()], [rollouts()], options=FitOptions(clip=0.1))
