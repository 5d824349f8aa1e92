"""Confidence: minus the distance between the end of a response and those of the base model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import HeadConfig
from .heads import ValueHead
from .rollouts import Shards

_FEWEST = 2


def confidence_head(
    train: Shards,
    *,
    base_model: str,
    base_hash: str | None = None,
    ridge: float = 1.0,
    name: str = "confidence",
) -> ValueHead:
    """Return a "mahalanobis" head, whose value is minus the distance from the ends of responses.

    V(h) = -sqrt((h - centre)^T Sigma^-1 (h - centre)). With phi the state behind the last token of
    a response that ended, centre is the mean of phi over `train`, and
    Sigma = ridge I + sum (phi - centre)(phi - centre)^T. It is a sum: with n responses, V of a new
    end is about -sqrt(d / n) if n is far above d and the ridge is small. V has no unit. A reward r
    and V weighted by c make the lower confidence bound r - c distance.

    Each shard is read once, one in memory at a time, with a few matrices [d, d]. Sums and the
    inverse are in float64, the head's weights in float32.

    Source: the pessimistic reward of offline RLHF (arXiv 2312.11456). Its Sigma sums differences
    between two responses to one prompt; here they are between each response and the mean.

    Args:
        train: responses of the base model; their rewards are not read.
        base_model, base_hash: as in `HeadConfig`.
        ridge: lambda, in squared units of the states; positive.
        name: name of the head's one output.

    Raises:
        ValueError: fewer than 2 responses ended; the ridge is not positive, or too small to invert
            Sigma; or a state is not finite.
    """
    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge must be a positive number, got {ridge}")
    moments = _Moments()
    for states in _final_states(train):
        moments.add(states)
    if moments.count < _FEWEST:
        raise ValueError(f"responses that ended must be at least {_FEWEST}, got {moments.count}")
    config = HeadConfig(
        architecture="mahalanobis",
        rewards=(name,),
        hidden_size=len(moments.mean),
        shift=(0.0,),
        scale=(1.0,),
        base_model=base_model,
        base_hash=base_hash,
    )
    head = ValueHead(config, f"Made of {moments.count} responses that ended, λ = {ridge:g}.\n")
    factor = _inverse_root(moments.scatter, ridge)
    head.net.load_state_dict({"centre": moments.mean.float(), "factor": factor})
    return head.eval()


@torch.no_grad()
def mean_confidence(head: ValueHead, held_out: Shards) -> float | None:
    """Return the mean value of the head's one output at the ends of responses; None if none ended.

    Args:
        head: a head from `confidence_head`.
        held_out: responses that the head was not made from; cut ones are left out.
    """
    total, count = 0.0, 0
    for states in _final_states(held_out):
        total += float(head(states).double().sum())
        count += len(states)
    return total / count if count else None


@dataclass(slots=True)
class _Moments:
    """Mean [d] and scatter sum (h - mean)(h - mean)^T [d, d] of states so far, float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def add(self, states: Tensor) -> None:
        """Add states [n, d], n > 0, by the pairwise update of Chan, Golub and LeVeque (1979)."""
        states = states.double()
        if not self.count:
            size = states.shape[1]
            self.mean, self.scatter = states.new_zeros(size), states.new_zeros(size, size)
        before, self.count = self.count, self.count + len(states)
        mean = states.mean(0)
        centred, step = states - mean, mean - self.mean
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(step, step, alpha=before * len(states) / self.count)
        self.mean += step * (len(states) / self.count)


def _final_states(shards: Shards) -> Iterator[Tensor]:
    """The last states of each shard's ended responses, [n, d] with n > 0, on the CPU."""
    for index in range(len(shards)):  # iterating over shards would keep one while reading the next
        states = _last(shards, index)
        if len(states):
            yield states


def _last(shards: Shards, index: int) -> Tensor:
    data = shards[index]
    return data.states[data.final].cpu()


def _inverse_root(scatter: Tensor, ridge: float) -> Tensor:
    """Return L^-1, float32, with ridge I + scatter = L L^T."""
    identity = torch.eye(len(scatter), dtype=scatter.dtype)
    lower, failed = torch.linalg.cholesky_ex(scatter + ridge * identity)
    factor: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False).float()
    if int(failed) or not factor.isfinite().all():
        raise ValueError(
            "ridge must be larger, or the states are not finite: Sigma has no inverse in float64, "
            f"got ridge {ridge:g}"
        )
    return factor
