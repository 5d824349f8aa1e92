"""Metrics of how well values predict the rewards that followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_PAIRS = 1 << 22  # pairs compared in one operation


def _check_vectors(**vectors: Tensor) -> None:
    first, *others = vectors.values()
    if first.ndim == 1 and all(other.shape == first.shape for other in others):
        return
    names, shapes = list(vectors), [str(list(vector.shape)) for vector in vectors.values()]
    raise ValueError(
        f"{', '.join(names[:-1])} and {names[-1]} must be vectors of the same length, got "
        f"{', '.join(shapes[:-1])} and {shapes[-1]}"
    )


def correlation(values: Tensor, rewards: Tensor) -> float:
    """Return Pearson's correlation of two vectors [N]; NaN where one of them is constant.

    Raises:
        ValueError: the shapes differ, or there are fewer than two entries.
    """
    _check_vectors(values=values, rewards=rewards)
    if len(values) < 2:
        raise ValueError(f"a correlation needs at least 2 entries, got {len(values)}")
    centred = torch.stack([values, rewards]).double()
    centred = centred - centred.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    return float((centred[0] @ centred[1]) / (norms[0] * norms[1]))


def correlation_by_bucket(
    values: Tensor, rewards: Tensor, places: Tensor, edges: Sequence[float]
) -> list[float | None]:
    """Return the correlation within each bucket of places; None for buckets of fewer than two.

    Args:
        values, rewards, places: float [N]; a place is a token's index or its fraction of the text.
        edges: ascending numbers; bucket i holds edges[i] <= place < edges[i + 1].
    """
    return [
        correlation(values[inside], rewards[inside]) if inside.sum() > 1 else None
        for low, high in pairwise(edges)
        for inside in [(places >= low) & (places < high)]
    ]


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of about the same value: their mean, the mean reward, and their number."""

    value: float
    reward: float
    count: int


def pair_accuracy(values: Tensor, rewards: Tensor, groups: Tensor) -> float | None:
    """Return the share of pairs whose values have the order of their rewards.

    The pairs are all those in the same group with different rewards. A tie in value counts one
    half, so uninformative values have 0.5. For rewards 0 and 1, this is the area under the ROC
    curve.

    Args:
        values, rewards: float [N].
        groups: int64 [N], ids such as the prompt that each response answers.

    Returns:
        From 0 to 1; None without such a pair.

    Raises:
        ValueError: the shapes differ, or are not [N].
    """
    _check_vectors(values=values, rewards=rewards, groups=groups)
    groups, order = groups.sort()
    values, rewards = values[order], rewards[order]
    first = torch.searchsorted(groups, groups)
    behind = torch.searchsorted(groups, groups, right=True)
    right, pairs = 0.0, 0
    step = max(1, _PAIRS // max(1, len(values)))
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        others = slice(int(first[rows][0]), int(behind[rows][-1]))
        above = rewards[rows, None] > rewards[others]
        above &= groups[rows, None] == groups[others]
        higher = (values[rows, None] > values[others]) & above
        tied = (values[rows, None] == values[others]) & above
        right += int(higher.sum()) + 0.5 * int(tied.sum())
        pairs += int(above.sum())
    return right / pairs if pairs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Reward that best-of-n by value earns, as means over prompts with two responses or more.

    Attributes:
        prompts: number of such prompts.
        responses: number of responses to a prompt: the n of best-of-n.
        chance: reward of a random response.
        chosen: reward of the response with the highest value, the first of equal ones.
        best: highest reward.
    """

    prompts: int
    responses: float
    chance: float
    chosen: float
    best: float


@dataclass(frozen=True, slots=True)
class ResponseGroups:
    """The P groups that have two responses or more, at most K in a group.

    Attributes:
        members: int64 [P, K], places of the responses, in order; arbitrary beyond a group's count.
        counts: int64 [P], responses of each group.
    """

    members: Tensor
    counts: Tensor

    @classmethod
    def from_ids(cls, ids: Tensor) -> "ResponseGroups | None":
        """Group responses by their ids, int64 [N]; None if no two share an id."""
        _, place, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        several = counts > 1
        if not several.any():
            return None
        place, order = place.sort(stable=True)
        number = torch.arange(len(place), device=place.device) - (counts.cumsum(0) - counts)[place]
        members = torch.zeros(
            len(counts), int(counts.max()), dtype=torch.int64, device=place.device
        )
        members[place, number] = order
        return cls(members[several], counts[several])

    @property
    def inside(self) -> Tensor:
        """Mask of the places of `members` that are in use, bool [P, K]."""
        places = torch.arange(self.members.shape[1], device=self.counts.device)
        return places < self.counts[:, None]

    def best(self, values: Tensor) -> Tensor:
        """Return the response with the highest value of each group, the first of equal ones, [P].

        Args:
            values: float [N], values of all responses; compared in float32.
        """
        scores = values[self.members].float().masked_fill(~self.inside, -torch.inf)
        chosen = scores.argmax(1, keepdim=True)
        return self.members.gather(1, chosen)[:, 0]


def selected(values: Tensor, rewards: Tensor, groups: Tensor) -> Selected | None:
    """Return the reward of the response with the highest value of each group.

    Args:
        values, rewards: float [N], on any device.
        groups: int64 [N], ids such as the prompt that each response answers.

    Returns:
        None if no group has two responses.

    Raises:
        ValueError: the shapes differ, or are not [N].
    """
    _check_vectors(values=values, rewards=rewards, groups=groups)
    several = ResponseGroups.from_ids(groups)
    if several is None:
        return None
    earned, inside = rewards[several.members], several.inside
    return Selected(
        prompts=len(several.counts),
        responses=float(several.counts.double().mean()),
        chance=float((earned.where(inside, 0.0).sum(1) / several.counts).mean()),
        chosen=float(rewards[several.best(values)].mean()),
        best=float(earned.where(inside, -torch.inf).amax(1).mean()),
    )


def calibration(values: Tensor, rewards: Tensor, bins: int = 10) -> list[Bin]:
    """Return the mean reward by predicted value, in bins of equal count, lowest values first.

    Equal values share a bin, so with ties the counts may differ, and there may be fewer bins.

    Args:
        values, rewards: float [N].
        bins: most bins, at least 1.

    Raises:
        ValueError: the shapes differ or are not [N], or `bins` is below 1.
    """
    _check_vectors(values=values, rewards=rewards)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not len(values):
        return []
    _, kind, count = torch.unique(values, return_inverse=True, return_counts=True)
    middle = 2 * count.cumsum(0) - count  # twice the rank
    of_kind = middle * bins // (2 * len(values))
    _, place, sizes = torch.unique(of_kind[kind], return_inverse=True, return_counts=True)
    sums = torch.zeros(2, len(sizes), dtype=torch.float64, device=values.device)
    sums.index_add_(1, place, torch.stack([values, rewards]).double())
    means = (sums / sizes).T.tolist()
    return [Bin(value, reward, n) for (value, reward), n in zip(means, sizes.tolist(), strict=True)]
