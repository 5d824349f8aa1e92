"""The operations of the hot path in plain PyTorch: their definition, on any device.

Logits may be float64: the Triton kernels, in float32, are tested against that.
"""

import torch
from torch import Tensor

from value_heads.mix import weighted_sum
from value_heads.tilt import centred_on_top_k, kl

from .arguments import (
    MARGIN,
    MIXES,
    TILTED,
    BatchMixture,
    BatchTilt,
    PackedHeads,
    PathKL,
    Statistics,
)


def score(
    hidden: Tensor, rows: Tensor, heads: PackedHeads, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return values [n, G] and sum_g w_g V_g [n], in units of the rewards.

    Args:
        hidden: hidden states [N, d], of any float dtype.
        rows: int64 [n], places of the rows in `hidden`.
        heads: heads of hidden size d.
        weights: float32 [n, G]; a reward of weight 0 is left out. None for no sum.
    """
    dtype = heads.first.dtype
    units = hidden[rows].to(dtype) @ heads.first.T + heads.first_bias
    units = torch.where(heads.gelu > 0, torch.nn.functional.gelu(units), units)
    # NaN times 0 is NaN: a broken head's must not reach the values of the others.
    raw = torch.where(heads.second == 0, 0.0, units[:, None] * heads.second).sum(-1) + heads.bias
    values = heads.shift + heads.scale * torch.where(heads.sigmoid > 0, raw.sigmoid(), raw)
    if weights is None:
        return values, None
    return values, torch.where(weights == 0, 0.0, weights * values).sum(-1)


def steer(
    logits: Tensor,
    rows: Tensor,
    *,
    mixture: BatchMixture | None = None,
    tilt: BatchTilt | None = None,
    temperature: Tensor | None = None,
    measured: bool = True,
    kinds: Tensor | None = None,
) -> Statistics | None:
    """Mix members into rows of the logits and tilt the result, in place.

    Args:
        logits: float32 [N, |V|]; rows not in `rows` stay unchanged.
        rows: int64 [n], distinct places of the rows in `logits`.
        temperature: float32 [n], T of the statistics only; None for 1.
        measured: whether to return the statistics.
        kinds: int64 [n], bits MIXES and TILTED of each row. An operation that a row's kind leaves
            out changes no bit of its logits. None: every row is mixed and tilted.
    """
    before = after = logits[rows]
    if kinds is None:
        kinds = torch.full_like(rows, MIXES | TILTED)
    if mixture is not None:
        after = torch.where((kinds & MIXES > 0)[:, None], _mixed(before, mixture), before)
    if tilt is not None:
        tilted = kinds & TILTED > 0
        after = torch.where(tilted[:, None], after + _delta(after, tilt, tilted), after)
    logits[rows] = after
    return statistics(before, after, temperature) if measured else None


def _mixed(base: Tensor, mixture: BatchMixture) -> Tensor:
    """Return mixed logits of the first m rows; the others, which do not mix, are NaN."""
    count = len(mixture.members[0]) if mixture.members else len(base)
    models = [base[:count], *(member.to(base.dtype) for member in mixture.members)]
    weights = mixture.weights[:count].to(base.dtype)
    result = torch.full_like(base, torch.nan)
    result[:count] = weighted_sum(models, weights, mixture.vocabulary)
    return result


def _delta(logits: Tensor, tilt: BatchTilt, tilted: Tensor) -> Tensor:
    delta = torch.zeros_like(logits[:, : tilt.vocabulary])
    for factors, tokens in zip(tilt.factors, tilt.tokens, strict=True):
        head_vocabulary = tokens.shape[1]
        flat = tokens.to(logits.dtype).transpose(1, 2).flatten(0, 1)  # [G r, |V_h|]
        delta[:, :head_vocabulary] += factors.to(logits.dtype).flatten(1) @ flat
    if tilt.top_k is not None:
        top_k = torch.where(tilted, tilt.top_k, 0)
        delta = centred_on_top_k(delta, logits[:, : tilt.vocabulary], top_k, tilt.most)
    return torch.nn.functional.pad(delta, (0, logits.shape[1] - delta.shape[1]))


def statistics(before: Tensor, after: Tensor, temperature: Tensor | None = None) -> Statistics:
    """Return the statistics of a change of logits, float [n, |V|]; `temperature` is float [n]."""
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
    result = logits.logsumexp(-1)
    return result.masked_fill(result == torch.inf, torch.nan)  # as softmax is


def charge(
    paths: PathKL, slots: Tensor, tokens: Tensor, nats: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """Add a step's KL to the paths of n rows, in place, unless it exceeds the budget.

    The caller leaves a step that exceeds its budget unsteered. A KL of NaN exceeds no budget, so
    that the row stays steered and the NaN is reported.

    Args:
        paths: the paths of all slots.
        slots: int64 [n], distinct slots of the rows.
        tokens: int64 [n], tokens of the prefix that the step's logits are conditioned on. A step of
            the same prefix as the last step replaces it.
        nats: float32 [n], KL of the step.
        budgets: float32 [n], in nats; +inf for none.

    Returns:
        float32 [n, 2]: nats of the path with this step, and its unsteered steps so far. Bool [n]:
        whether this step exceeds the budget.
    """
    new = tokens != paths.at[slots]
    spent = paths.spent[slots] + torch.where(new, paths.step[slots], 0.0)
    unsteered = paths.unsteered[slots] + torch.where(new, paths.step_unsteered[slots], 0)
    kl = nats.double()
    over = spent + kl > budgets.double() * MARGIN  # False of NaN
    kl = torch.where(over, 0.0, kl)
    paths.spent[slots], paths.step[slots], paths.at[slots] = spent, kl, tokens
    paths.unsteered[slots], paths.step_unsteered[slots] = unsteered, over.int()
    return torch.stack([(spent + kl).float(), (unsteered + over).float()], dim=1), over
