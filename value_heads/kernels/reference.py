"""The operations of the hot path in plain PyTorch: what they mean, on any device.

Logits may be float64, which the Triton kernels' float32 is tested against.
"""

import torch
from torch import Tensor

from value_heads.mix import mixed
from value_heads.tilt import centred_on_top_k, kl

from .arguments import Mixture, PackedHeads, Statistics, Tilt


def score(
    hidden: Tensor, rows: Tensor, heads: PackedHeads, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return values [n, G] and sum_g w_g V_g [n], in units of the rewards.

    Args:
        hidden: hidden states [N, d], of any float dtype.
        rows: int64 [n], rows of them.
        heads: of hidden size d.
        weights: float32 [n, G]; a reward of weight 0 takes no part. None for no sum.
    """
    dtype = heads.first.dtype
    units = hidden[rows].to(dtype) @ heads.first.T + heads.first_bias
    units = torch.where(heads.gelu > 0, torch.nn.functional.gelu(units), units)
    # A broken head's NaN times 0 must not reach the values of the others.
    raw = torch.where(heads.second == 0, 0.0, units[:, None] * heads.second).sum(-1) + heads.bias
    values = heads.shift + heads.scale * torch.where(heads.sigmoid > 0, raw.sigmoid(), raw)
    if weights is None:
        return values, None
    return values, torch.where(weights == 0, 0.0, weights * values).sum(-1)


def steer(
    logits: Tensor,
    rows: Tensor,
    *,
    mixture: Mixture | None = None,
    tilt: Tilt | None = None,
    temperature: Tensor | None = None,
    measured: bool = True,
) -> Statistics | None:
    """Mix members into rows of the logits, tilt the result, both in place.

    Args:
        logits: float32 [N, |V|]; rows that are not named stay as they are.
        rows: int64 [n], different ones.
        temperature: float32 [n], for the statistics alone; None for 1.
        measured: whether to return the statistics.
    """
    before = logits[rows]
    after = before if mixture is None else _mixed(before, mixture)
    if tilt is not None:
        after = after + _delta(after, tilt)
    logits[rows] = after
    return statistics(before, after, temperature) if measured else None


def _mixed(base: Tensor, mixture: Mixture) -> Tensor:
    models = [base, *(member.to(base.dtype) for member in mixture.members)]
    if mixture.normalised:
        models = [model.log_softmax(-1) for model in models]
    names = ["base", *(str(i) for i in range(len(mixture.members)))]
    weights = [dict(zip(names, row, strict=True)) for row in mixture.weights.tolist()]
    total = mixed(models[0], dict(zip(names[1:], models[1:], strict=True)), weights)
    total[:, mixture.vocabulary :] = -torch.inf
    return total


def _delta(logits: Tensor, tilt: Tilt) -> Tensor:
    delta = torch.zeros_like(logits[:, : tilt.vocabulary])
    for factors, tokens in zip(tilt.factors, tilt.tokens, strict=True):
        known = tokens.shape[1]
        flat = tokens.to(logits.dtype).transpose(1, 2).flatten(0, 1)  # [G r, |V_h|]
        delta[:, :known] += factors.to(logits.dtype).flatten(1) @ flat
    if tilt.top_k is not None:
        top_k = torch.tensor(tilt.top_k, device=logits.device)
        delta = centred_on_top_k(delta, logits[:, : tilt.vocabulary], top_k)
    return torch.nn.functional.pad(delta, (0, logits.shape[1] - delta.shape[1]))


def statistics(before: Tensor, after: Tensor, temperature: Tensor | None = None) -> Statistics:
    """Return what changed between two tensors of logits [n, |V|]."""
    if temperature is not None:
        divisor = torch.where(temperature > 0, temperature, 1.0).to(before.dtype)[:, None]
        before, after = before / divisor, after / divisor
    log_p = after.log_softmax(-1)
    lowest = torch.finfo(log_p.dtype).min / 4  # times 0 it is 0, unlike -inf
    return Statistics(
        _log_sum_exp(before),
        _log_sum_exp(after),
        kl(before, after),
        -(log_p.exp() * log_p.clamp(min=lowest)).sum(-1),
    )


def _log_sum_exp(logits: Tensor) -> Tensor:
    found = logits.logsumexp(-1)
    return found.masked_fill(found == torch.inf, torch.nan)  # as softmax is


def select(scores: Tensor, counts: Tensor, strengths: Tensor, uniforms: Tensor) -> Tensor:
    """Return which candidate of each group is taken, int64 [B].

    Strength 0 takes the highest score, of equal ones the first drawn. Strength lambda > 0 takes
    candidate i with probability softmax(score / lambda): the first whose cumulative probability
    is above the group's uniform number.

    Args:
        scores: [B, K], finite or -inf, not all -inf in a group; beyond a group's count unread.
        counts: int64 [B], candidates of each group, from 1 to K.
        strengths: [B], 0 or more.
        uniforms: [B], from [0, 1); unread at strength 0.
    """
    inside = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    scores = scores.masked_fill(~inside, -torch.inf)
    best = scores.argmax(-1)
    divisor = torch.where(strengths > 0, strengths, 1.0)[:, None]
    cumulative = ((scores - scores.amax(-1, keepdim=True)) / divisor).exp().cumsum(-1)
    passed = cumulative <= (uniforms * cumulative[:, -1])[:, None]
    drawn = torch.minimum(passed.sum(-1), _last_likely(scores))
    return torch.where(strengths > 0, drawn, best)


def _last_likely(scores: Tensor) -> Tensor:
    places = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(scores > -torch.inf, places, 0).amax(-1)
