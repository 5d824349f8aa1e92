"""The operations of the hot path in plain PyTorch: what they mean, on any device.

Logits may be float64, which the Triton kernels' float32 is tested against.
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
    mixture: BatchMixture | None = None,
    tilt: BatchTilt | None = None,
    temperature: Tensor | None = None,
    measured: bool = True,
    kinds: Tensor | None = None,
) -> Statistics | None:
    """Mix members into rows of the logits, tilt the result, both in place.

    Args:
        logits: float32 [N, |V|]; rows that are not named stay as they are.
        rows: int64 [n], different ones.
        temperature: float32 [n], for the statistics alone; None for 1.
        measured: whether to return the statistics.
        kinds: int64 [n], the sum of MIXES where the row is mixed and TILTED where it is tilted. A
            row keeps its logits bit for bit where it is not. None: all rows are all that is given.
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
    """Mix the first m rows; the others are NaN, which no row may take."""
    count = len(mixture.members[0]) if mixture.members else len(base)
    models = [base[:count], *(member.to(base.dtype) for member in mixture.members)]
    weights = mixture.weights[:count].to(base.dtype)
    result = torch.full_like(base, torch.nan)
    result[:count] = weighted_sum(models, weights, mixture.vocabulary)
    return result


def _delta(logits: Tensor, tilt: BatchTilt, tilted: Tensor) -> Tensor:
    delta = torch.zeros_like(logits[:, : tilt.vocabulary])
    for factors, tokens in zip(tilt.factors, tilt.tokens, strict=True):
        known = tokens.shape[1]
        flat = tokens.to(logits.dtype).transpose(1, 2).flatten(0, 1)  # [G r, |V_h|]
        delta[:, :known] += factors.to(logits.dtype).flatten(1) @ flat
    if tilt.top_k is not None:
        top_k = torch.where(tilted, tilt.top_k, 0)
        delta = centred_on_top_k(delta, logits[:, : tilt.vocabulary], top_k, tilt.most)
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


def charge(
    paths: PathKL, slots: Tensor, tokens: Tensor, nats: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """Add a step's KL to the paths of n rows, in place; return the paths' KL and what exceeds it.

    A step that would exceed its budget is not added: the caller leaves it unsteered. A KL of NaN
    exceeds no budget, so that the row stays steered and the NaN is reported.

    Args:
        paths: of all slots.
        slots: int64 [n], different ones.
        tokens: int64 [n], of the prefix that the step's logits are conditioned on. Where it is the
            prefix of the last step, this step replaces that one.
        nats: float32 [n], the step's KL.
        budgets: float32 [n]; +inf for none.

    Returns:
        float32 [n, 2]: nats of the path with this step, and steps that were left unsteered. Bool
        [n]: whether this step exceeds the budget.
    """
    new = tokens != paths.at[slots]
    spent = paths.spent[slots] + torch.where(new, paths.step[slots], 0.0)
    unsteered = paths.unsteered[slots] + torch.where(new, paths.step_unsteered[slots], 0)
    kl = nats.double()
    over = spent + kl > budgets.double() * MARGIN  # a NaN is not
    kl = torch.where(over, 0.0, kl)
    paths.spent[slots], paths.step[slots], paths.at[slots] = spent, kl, tokens
    paths.unsteered[slots], paths.step_unsteered[slots] = unsteered, over.int()
    return torch.stack([(spent + kl).float(), (unsteered + over).float()], dim=1), over
