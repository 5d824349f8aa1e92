"""Losses of value learning. All sum over rewards and average over the positions of a mask."""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_squared_error(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return half the squared error, averaged over the positions where the mask is True.

    The sum over rewards is taken, not their mean. Its gradient with respect to a value is
    (V - target) / #positions. Controlled Decoding (arXiv 2310.17022), equation 4.

    Args:
        values, targets: float [..., G], in reward units; no gradient flows into the targets.
        mask: bool [...].

    Returns:
        float [], in squared reward units.

    Raises:
        ValueError: the shapes do not agree, or no position counts.
    """
    values, targets = _counted(values, targets, mask)
    return 0.5 * (values - targets.detach()).square().sum() / len(values)


def clipped_squared_error(
    values: Tensor, before: Tensor, targets: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Return half the squared error of V, or of V clipped to within `clip` of its earlier value.

    The larger of the two counts at each position, so that a batch moves no value by more than
    `clip` towards its target. PPO's value loss (arXiv 1707.06347, as implemented by its authors).

    Args:
        values, targets: float [..., G], in reward units; no gradient flows into the targets.
        before: float [..., G], values before the batch.
        mask: bool [...].
        clip: largest change, in reward units.

    Raises:
        ValueError: the shapes do not agree, or no position counts.
    """
    values, targets = _counted(values, targets, mask)
    before, targets = before.detach()[mask], targets.detach()
    clipped = before + (values - before).clamp(-clip, clip)
    errors = torch.maximum((values - targets).square(), (clipped - targets).square())
    return 0.5 * errors.sum() / len(values)


def linex(values: Tensor, targets: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Return beta^2 (exp(u) - u - 1), u = (target - V) / beta: the loss of soft values.

    Over targets that are rewards of rollouts its minimiser is V = beta log E_p[exp(r / beta) | s],
    the value of kind "soft". Near 0 it is half the squared error. Extreme Q-learning (arXiv
    2301.02328), Gumbel regression.

    Args:
        values, targets: float [..., G], in reward units; no gradient flows into the targets.
        mask: bool [...].
        beta: positive, in reward units per nat. No step size suits the gradients of rewards that
            differ by many beta: choose beta as large as their spread, or larger.

    Raises:
        ValueError: the shapes do not agree, no position counts, or beta is not positive.
    """
    values, targets = _counted(values, targets, mask)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    errors = (targets.detach() - values) / beta
    return beta**2 * (torch.expm1(errors) - errors).sum() / len(values)


def binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of rewards from 0 to 1 and values sigmoid(logits), in nats.

    Its minimiser is sigmoid(logit) = E_p[r | s]. VGS (arXiv 2505.17373) fits probabilities of
    success this way.

    Args:
        logits: float [..., G].
        targets: float [..., G], from 0 to 1.
        mask: bool [...].

    Raises:
        ValueError: the shapes do not agree, no position counts, or a target is outside [0, 1].
    """
    logits, targets = _counted(logits, targets, mask)
    if ((targets < 0) | (targets > 1)).any():
        raise ValueError(
            f"targets must be from 0 to 1, got {float(targets.min())} to {float(targets.max())}"
        )
    errors = F.binary_cross_entropy_with_logits(logits, targets.detach(), reduction="sum")
    return errors / len(logits)


def bradley_terry(chosen: Tensor, rejected: Tensor, mask: Tensor) -> Tensor:
    """Return -log sigmoid(V(chosen prefix) - V(rejected prefix)), in nats.

    Its minimiser has the log-odds of the preference as the difference of the values. Pairs of
    prefixes of equal length, as PARGS (arXiv 2406.07780) trains rewards of partial sequences.

    Args:
        chosen, rejected: float [..., G], values of the two prefixes of each pair.
        mask: bool [...].

    Raises:
        ValueError: the shapes do not agree, or no position counts.
    """
    chosen, rejected = _counted(chosen, rejected, mask)
    return F.softplus(rejected - chosen).sum() / len(chosen)


def _counted(values: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return both where the mask is True, [N, G], so that even NaN elsewhere has no effect."""
    if values.shape != targets.shape or values.shape[:-1] != mask.shape:
        raise ValueError(
            "values, targets and mask must be [..., G], [..., G] and [...], got "
            f"{list(values.shape)}, {list(targets.shape)} and {list(mask.shape)}"
        )
    if not mask.any():
        raise ValueError("mask must be True somewhere")
    return values[mask], targets[mask]
