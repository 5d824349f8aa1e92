"""Quality of a trained head, measured on rollouts that the head was not fitted to."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .base import Base
from .frontier import Frontier, frontier
from .heads import Head, QHead
from .losses import linex, masked_squared_error
from .methods import ControlledQ, all_values
from .metrics import (
    Bin,
    Selected,
    calibration,
    correlation,
    correlation_by_bucket,
    pair_accuracy,
    selected,
)
from .rollouts import Rollouts, Shards
from .targets import mean_over_rollouts

Pairs = Literal["same prompt", "any two"]
Residual = Literal["sampled", "exact"]

GAIN_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers n of prefixes in ``Remaining.gains``."""
_FIRST_NUMBER = 8
_HIGHEST = 1 / 16
_FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Pearson's correlation of value and reward over the tokens at low <= place < high.

    None where undefined: for fewer than two tokens, or if value or reward is constant.
    """

    low: float
    high: float
    tokens: int
    correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsAt:
    """Pair accuracy at prefixes of one length.

    Attributes:
        number: tokens of the prefix.
        responses: number of responses that are longer than the prefix.
        accuracy: from 0 to 1; None without a pair of different rewards.
    """

    number: int
    responses: int
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """Rest of the response after prefixes of low <= tokens < high that do not end it.

    Attributes:
        low, high: bounds of the tokens of the prefix.
        prefixes: number of prefixes.
        tokens: mean number of tokens still to come.
        deviation: standard deviation of reward - value, in reward units.
        change: standard deviation of the value's change up to the last token, in reward units.
        gains: mean of reward - value for the best of n = 1, 2, 4, ..., 64 prefixes by the change of
            their value up to the last token, in reward units: what best-of-n by the final value
            adds. Of the sixteenth of the prefixes with the highest values, which a search holds.
    """

    low: int
    high: int
    prefixes: int
    tokens: float
    deviation: float
    change: float
    gains: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """Quality of one output of a head.

    A soft value is fitted by `loss`. Its squared error and calibration, which are against raw
    rewards, are not 0 at the exact value, since that lies above the mean.

    Attributes:
        reward_mean, reward_sd: mean and standard deviation over responses; the latter divides by
            their number.
        half_squared_error: mean over tokens, in squared reward units.
        baseline: half squared error of the best constant for all prefixes.
        loss: LINEX for a soft value, else the half squared error; None if it overflows.
        baseline_loss: loss of the best constant for all prefixes.
        by_number: correlation by a token's number in its response: 1 to 7, 8 to 15, 16 to 31, ...
        by_fraction: correlation by the fraction of the response that precedes the token.
        at_end: correlation at the last token.
        pairs_by_number: pair accuracy at 8, 16, 32, ... tokens.
        pairs_at_end: pair accuracy at the last token.
        selected: reward earned by best-of-n by the value at the last token; None if no prompt has
            several responses.
        calibration: bins over all tokens.
        calibration_gap: root mean square over tokens of their bin's mean reward - mean value.
        bellman_bias: mean Bellman residual, in reward units; positive if values are lower than the
            values after them. For sampled residuals of a soft value it is
            beta log mean exp(residual / beta), which is 0 at the exact value.
        bellman_rms: root mean square of the residual. For sampled residuals it includes the
            variance of the sampled token, so it is not an error by itself.
        remaining: rest of the response after prefixes of 1 to 7, 8 to 15, 16 to 31, ... tokens;
            without the lengths that no prefix has.
    """

    reward_mean: float
    reward_sd: float
    half_squared_error: float
    baseline: float
    loss: float | None
    baseline_loss: float | None
    by_number: tuple[Bucket, ...]
    by_fraction: tuple[Bucket, ...]
    at_end: float | None
    pairs_by_number: tuple[PairsAt, ...]
    pairs_at_end: float | None
    selected: Selected | None
    calibration: tuple[Bin, ...]
    calibration_gap: float
    bellman_bias: float | None
    bellman_rms: float | None
    remaining: tuple[Remaining, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadReport:
    """Quality of a head on held-out rollouts.

    Attributes:
        beta: beta of a soft head; None for a mean.
        responses: number of responses that ended or count as ended; everything but the Bellman
            residual is measured on these.
        cut: number of responses that did not end, so that they have no reward.
        tokens: number of tokens of the responses that ended.
        pairs: compared pairs of responses: to the same prompt if any prompt has several, else any
            two.
        residual: kind of the Bellman residual. "sampled" is V(s_{t+1}) - V(s_t), between tokens of
            a response. "exact", for a Q-head, is the expectation of Q after the token, or the
            reward if the token ended the response, minus Q(s_t, z_t). None: not measured.
        rewards: quality of each output, by reward.
        frontier: rewards earned by best-of-n by weighted sums of two values; None for a head of one
            reward, if no prompt has several responses, or if fewer than two rewards vary.
    """

    beta: float | None
    responses: int
    cut: int
    tokens: int
    pairs: Pairs
    residual: Residual | None
    rewards: dict[str, RewardReport]
    frontier: Frontier | None = None

    def to_json(self) -> str:
        """Return the report as JSON text, with null for undefined numbers."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def measure(head: Head, test: Shards, base: Base | None = None) -> HeadReport:
    """Measure a head on held-out rollouts. One shard is in memory at a time.

    Args:
        base: the base model's output layer, on the head's device. A tied head needs it, and so does
            the Bellman residual of every Q-head, which is None without it.

    Raises:
        ValueError: no response ended, the numbers of rewards and outputs differ, or a tied head has
            no base.
    """
    parts = [_read(head, shard.to(head.shift.device), base) for shard in test]
    if not any(bool(part.ended.any()) for part in parts):
        raise ValueError("no held-out response ended by itself, so none has a reward")
    data = _Measurements(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    same_prompt = len(set(data.prompts.tolist())) < len(data.prompts)
    groups = data.prompts if same_prompt else torch.zeros_like(data.prompts)
    residual: Residual | None = "exact" if isinstance(head, QHead) else "sampled"
    if residual == "exact" and base is None:
        residual = None
    beta = head.config.beta
    return HeadReport(
        beta=beta,
        responses=len(data.lengths),
        cut=int((~data.ended).sum()),
        tokens=len(data.number),
        pairs="same prompt" if same_prompt else "any two",
        residual=residual,
        rewards={
            name: _reward_report(
                data, output, groups, beta, head.shift.device, sampled=residual == "sampled"
            )
            for output, name in enumerate(head.config.rewards)
        },
        frontier=frontier(head, test, *(at_end.to(head.shift.device) for at_end in data.at_end)),
    )


class _Measurements(NamedTuple):
    """Measurements of rollouts, for the B responses that ended and their N tokens unless stated."""

    values: Tensor  # [N, G]
    number: Tensor  # [N], number of the token in its response, from 1
    lengths: Tensor  # [B]
    rewards: Tensor  # [B, G]
    prompts: Tensor  # [B]
    residuals: Tensor  # [M, G], of all responses: ended ones alone would bias the mean
    ended: Tensor  # bool, of all responses

    @property
    def at_end(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, G] at the last tokens, rewards [B, G], prompts [B]."""
        return self.values[self.lengths.cumsum(0) - 1], self.rewards, self.prompts


@torch.no_grad()
def _read(head: Head, data: Rollouts, base: Base | None) -> _Measurements:
    if data.rewards.shape[1] != len(head.config.rewards):
        raise ValueError(
            f"rewards must be [{len(data.rewards)}, {len(head.config.rewards)}] for this head, got "
            f"{list(data.rewards.shape)}"
        )
    values = all_values(head, data, base)
    rows = data.rows(cut=False)
    measurements = _Measurements(
        values=values[rows].double(),
        number=data.number[rows],
        lengths=data.lengths[data.ended],
        rewards=data.rewards[data.ended].double(),
        prompts=data.prompts[data.ended],
        residuals=_residuals(head, data, base, values).double(),
        ended=data.ended,
    )
    return _Measurements(*(tensor.cpu() for tensor in measurements))


def _residuals(head: Head, data: Rollouts, base: Base | None, values: Tensor) -> Tensor:
    if not isinstance(head, QHead):
        return (values[1:] - values[:-1])[data.owner[1:] == data.owner[:-1]]
    if base is None:
        return values[:0]
    return ControlledQ().targets(head, data, base) - values


def _reward_report(
    data: _Measurements,
    output: int,
    groups: Tensor,
    beta: float | None,
    device: torch.device,
    *,
    sampled: bool,
) -> RewardReport:
    values, rewards = data.values[:, output], data.rewards[:, output]
    each = rewards.repeat_interleave(data.lengths)
    last = data.lengths.cumsum(0) - 1
    fraction = (data.number - 1).double() / data.lengths.repeat_interleave(data.lengths)
    bins = calibration(values, each)
    gap = sum(part.count * (part.reward - part.value) ** 2 for part in bins) / len(each)
    bias, rms = _bellman(data.residuals[:, output], beta if sampled else None)
    return RewardReport(
        reward_mean=float(rewards.mean()),
        reward_sd=float(rewards.std(correction=0)),
        half_squared_error=_loss(values, each, None),
        baseline=_loss(_constant(each, None), each, None),
        loss=_defined(_loss(values, each, beta)),
        baseline_loss=_defined(_loss(_constant(each, beta), each, beta)),
        by_number=_buckets(values, each, data.number, _edges(int(data.lengths.max()))),
        by_fraction=_buckets(values, each, fraction, _FRACTIONS),
        at_end=_defined(correlation(values[last], rewards)) if len(rewards) > 1 else None,
        pairs_by_number=tuple(_pairs_by_number(data, output, groups)),
        pairs_at_end=pair_accuracy(values[last], rewards, groups),
        selected=selected(*(some.to(device) for some in (values[last], rewards, data.prompts))),
        calibration=tuple(bins),
        calibration_gap=math.sqrt(gap),
        bellman_bias=bias,
        bellman_rms=rms,
        remaining=tuple(_remaining(data, output)),
    )


def _loss(values: Tensor, rewards: Tensor, beta: float | None) -> float:
    values, rewards, every = values[:, None], rewards[:, None], torch.ones_like(values) > 0
    if beta is None:
        return float(masked_squared_error(values, rewards, every))
    return float(linex(values, rewards, every, beta))


def _constant(rewards: Tensor, beta: float | None) -> Tensor:
    return mean_over_rollouts(rewards[:, None], beta).expand_as(rewards)


def _bellman(residuals: Tensor, beta: float | None) -> tuple[float | None, float | None]:
    if not len(residuals):
        return None, None
    rms = float(residuals.square().mean().sqrt())
    return float(mean_over_rollouts(residuals[:, None], beta)), rms


def _edges(longest: int) -> list[int]:
    edges = [1, _FIRST_NUMBER]
    while edges[-1] <= longest:
        edges.append(2 * edges[-1])
    return edges


def _buckets(
    values: Tensor, rewards: Tensor, places: Tensor, edges: Sequence[float]
) -> tuple[Bucket, ...]:
    correlations = correlation_by_bucket(values, rewards, places, edges)
    return tuple(
        Bucket(
            low=low,
            high=high,
            tokens=int(((places >= low) & (places < high)).sum()),
            correlation=None if correlation is None else _defined(correlation),
        )
        for (low, high), correlation in zip(pairwise(edges), correlations, strict=True)
    )


def _pairs_by_number(data: _Measurements, output: int, groups: Tensor) -> list[PairsAt]:
    first = data.lengths.cumsum(0) - data.lengths
    pairs = []
    for number in _edges(int(data.lengths.max()) - 1)[1:-1]:
        longer = data.lengths > number
        values = data.values[first[longer] + number - 1, output]
        accuracy = pair_accuracy(values, data.rewards[longer, output], groups[longer])
        pairs.append(PairsAt(number=number, responses=int(longer.sum()), accuracy=accuracy))
    return pairs


def _remaining(data: _Measurements, output: int) -> Iterator[Remaining]:
    lengths = data.lengths.repeat_interleave(data.lengths)
    values, rewards = data.values[:, output], data.rewards[:, output]
    at_end = values[data.lengths.cumsum(0) - 1]
    residual = rewards.repeat_interleave(data.lengths) - values
    change = at_end.repeat_interleave(data.lengths) - values
    for low, high in pairwise(_edges(int(data.lengths.max()))):
        inside = (data.number >= low) & (data.number < high) & (data.number < lengths)
        if not inside.any():
            continue
        highest = _highest(values[inside])
        yield Remaining(
            low=low,
            high=high,
            prefixes=int(inside.sum()),
            tokens=float((lengths - data.number)[inside].double().mean()),
            deviation=float(residual[inside].std(correction=0)),
            change=float(change[inside].std(correction=0)),
            gains=_gains(residual[inside][highest], change[inside][highest]),
        )


def _highest(values: Tensor) -> Tensor:
    """Mask of the highest values; equal values are in or out together."""
    return values >= values.topk(math.ceil(_HIGHEST * len(values))).values[-1]


def _gains(residual: Tensor, change: Tensor) -> tuple[float, ...]:
    """Expected residual of the highest of n changes, drawn with replacement, for each size n."""
    residual = residual[change.argsort(stable=True)]
    at_most = torch.arange(len(change) + 1, dtype=torch.float64) / len(change)
    return tuple(float(at_most.pow(n).diff() @ residual) for n in GAIN_SIZES)


def _defined(number: float) -> float | None:
    return number if math.isfinite(number) else None
