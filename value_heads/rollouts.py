"""Rollouts: responses of the base model with its hidden states, the training data of heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """B responses drawn from the base model, N tokens in all, concatenated.

    Attributes:
        states: floating [N + B, d]; for each response the state of its prompt, then the state after
            each of its tokens.
        tokens: int64 [N], the response tokens, end tokens included.
        lengths: int64 [B], tokens of each response, at least 1.
        rewards: float32 [B, G], raw; unread where the response did not end.
        ended: bool [B], whether the response ended by itself. A response cut at a length limit did
            not, and has no reward, unless it counts as ended (`CachedRollouts`).
        prompts: int64 [B], the prompt that each response answers.
    """

    states: Tensor
    tokens: Tensor
    lengths: Tensor
    rewards: Tensor
    ended: Tensor
    prompts: Tensor

    def __post_init__(self) -> None:
        """Check that the tensors' shapes and dtypes agree."""
        count = len(self.lengths)
        total = int(self.lengths.sum())
        if self.tokens.shape != (total,) or len(self.states) != total + count:
            raise ValueError(
                f"{count} responses of {total} tokens have states [{total + count}, d] and tokens "
                f"[{total}], got {list(self.states.shape)} and {list(self.tokens.shape)}"
            )
        if not len(self.rewards) == len(self.ended) == len(self.prompts) == count:
            raise ValueError(
                f"rewards, ended and prompts must be of {count} responses, got "
                f"{len(self.rewards)}, {len(self.ended)} and {len(self.prompts)}"
            )
        if self.rewards.ndim != 2 or self.ended.dtype != torch.bool:
            raise ValueError(
                f"rewards must be [{count}, G] and ended bool, got {list(self.rewards.shape)} and "
                f"{self.ended.dtype}"
            )
        if count and int(self.lengths.min()) < 1:
            raise ValueError("lengths must be at least 1, got 0")

    @classmethod
    def padded(
        cls,
        *,
        states: Tensor,
        tokens: Tensor,
        mask: Tensor,
        rewards: Tensor,
        ended: Tensor,
        prompts: Tensor | None = None,
    ) -> "Rollouts":
        """Make rollouts from a padded batch.

        Args:
            states: floating [B, T + 1, d], the prompt's state first.
            tokens: int64 [B, T].
            mask: bool [B, T], True at the tokens of a response, which come first.
            rewards: float32 [B, G].
            ended: bool [B].
            prompts: int64 [B]; None if every response has its own prompt.
        """
        at_start = torch.ones_like(mask[:, :1])
        return cls(
            states=states[torch.cat([at_start, mask], 1)],
            tokens=tokens[mask],
            lengths=mask.sum(1),
            rewards=rewards.float(),
            ended=ended,
            prompts=torch.arange(len(mask)) if prompts is None else prompts,
        )

    @cached_property
    def owner(self) -> Tensor:
        """Index of the response of each token, int64 [N]."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(
            self.lengths
        )

    @cached_property
    def before(self) -> Tensor:
        """Index into `states` of the state that each token was sampled from, int64 [N]."""
        return torch.arange(len(self.tokens), device=self.tokens.device) + self.owner

    @cached_property
    def after(self) -> Tensor:
        """Index into `states` of the state after each token, int64 [N]."""
        return self.before + 1

    def rows(self, *, cut: bool) -> Tensor:
        """Return the indices of the tokens to learn from, int64 [n].

        Args:
            cut: whether to include tokens of responses that did not end.
        """
        used = torch.ones_like(self.ended) if cut else self.ended
        return used[self.owner].nonzero()[:, 0]

    @cached_property
    def number(self) -> Tensor:
        """Each token's number in its response, from 1, int64 [N]."""
        first = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.tokens), device=self.tokens.device) - first[self.owner] + 1

    @property
    def last(self) -> Tensor:
        """Places in `tokens` of each response's last token, int64 [B]."""
        return self.lengths.cumsum(0) - 1

    @property
    def final(self) -> Tensor:
        """Places in `states` of the last state of each response that ended, int64 [n]."""
        return self.after[self.last[self.ended]]

    @cached_property
    def mask(self) -> Tensor:
        """Mask of the tokens in a padded batch of the responses, bool [B, T]."""
        width = int(self.lengths.max())
        return torch.arange(width, device=self.lengths.device) < self.lengths[:, None]

    def pad(self, by_token: Tensor) -> Tensor:
        """Return values by token, [N, ...], as a padded batch, [B, T, ...], 0 elsewhere."""
        padded = by_token.new_zeros(*self.mask.shape, *by_token.shape[1:])
        padded[self.mask] = by_token
        return padded

    def to(self, device: torch.device | str) -> "Rollouts":
        """Return the rollouts on a device."""
        return Rollouts(**{name: getattr(self, name).to(device) for name in FIELDS})

    def split(self, share: float) -> tuple["Rollouts", "Rollouts"]:
        """Return the first `share` of the responses, and the rest, held out; neither is empty.

        Raises:
            ValueError: there are fewer than two responses.
        """
        count = len(self.lengths)
        if count < 2:
            raise ValueError(f"a split needs at least 2 responses, got {count}")
        at = min(max(round(share * count), 1), count - 1)
        return self._part(0, at), self._part(at, count)

    def _part(self, first: int, stop: int) -> "Rollouts":
        ends = [0, *self.lengths.cumsum(0).tolist()]
        begin, end = ends[first], ends[stop]
        return Rollouts(
            states=self.states[begin + first : end + stop],
            tokens=self.tokens[begin:end],
            lengths=self.lengths[first:stop],
            rewards=self.rewards[first:stop],
            ended=self.ended[first:stop],
            prompts=self.prompts[first:stop],
        )


FIELDS = ("states", "tokens", "lengths", "rewards", "ended", "prompts")

Shards = Sequence[Rollouts]
"""Rollouts in parts, each of which fits in memory: a list, or `CachedRollouts` on disk."""
