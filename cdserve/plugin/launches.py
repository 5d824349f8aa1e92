"""Steering by kernels: a launch for each kind of row, and all kinds launched before they are met.

Triton compiles a kernel for the types and sizes that it is launched with, which takes seconds, so
what a launch is given here depends on as little as possible: all members are always named, those
that did not run with weight 0, and T is always given.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from cdserve.plugin.inputs import MemberLogits, factors, index, tensor
from cdserve.plugin.rows import Row
from cdserve.plugin.rows import Tilt as Tilted
from value_heads import QHead
from value_heads.kernels import ROW_TILES, Mixture, Statistics, Tilt, operations

_TOP_K = 2
"""Any: the kernels know no k."""


class Launches:
    """The kernels as this server's heads and members launch them.

    Args:
        heads: the Q-heads, in the order of the policy's columns.
        members: the members' names.
    """

    def __init__(self, heads: Sequence[QHead], members: Sequence[str]) -> None:
        self._heads, self._members = heads, members
        self._kernels = operations(fused=True)

    def steer(
        self,
        logits: Tensor,
        index: Tensor,
        rows: Sequence[Row],
        hidden: Tensor,
        behind: Mapping[str, Tensor],
        lm_head: Tensor | None,
        measured: bool,
    ) -> Statistics | None:
        """Steers rows of one kind, in place.

        Args:
            logits: float32 ``[batch, |V|]``.
            index: int64 ``[N]``, where the rows are in the batch.
            rows: what they ask.
            hidden: the base's hidden states behind them, ``[N, d]``.
            behind: logits ``[N, |V|]`` of the members that ran.
            lm_head: the model's output embedding, which tied heads read.
            measured: whether to return the statistics.
        """
        unmixed, tilted, _ = kind(rows[0])
        return self._kernels.steer(
            logits,
            index,
            mixture=None if unmixed else self._mixture(behind, rows, logits),
            tilt=self._tilt(hidden, rows, lm_head) if tilted else None,
            temperature=tensor([row.temperature for row in rows], logits.device),
            measured=measured,
        )

    def warm_up(
        self,
        logits: Tensor,
        hidden: Tensor,
        members: MemberLogits,
        lm_head: Tensor | None,
        measured: Sequence[bool],
    ) -> int:
        """Launches every usual kind of row, so that none is compiled later; how many there are.

        Args:
            logits: float32 ``[batch, |V|]`` as a step has them, of the largest batch; they stay
                as they are.
            hidden: hidden states behind them.
            members: gives members' logits of rows.
            lm_head: the model's output embedding.
            measured: both, if a step may have statistics and may not.
        """
        made = 0
        sizes = _sizes(len(logits))
        kept = logits[: sizes[-1]].clone()
        for row, count in product(self._usual(), sizes):
            # Only a tilt of all tokens has its rows in tiles.
            if count > sizes[0] and (row.tilt is None or row.tilt.top_k):
                continue
            index = torch.arange(count, device=logits.device)
            # Once, whatever this worker measures: others may compute parts of these logits.
            behind = members(slice(count)) if row.mix else {}
            rows = [row] * count
            for measure in measured:
                self.steer(logits, index, rows, hidden[:count], behind, lm_head, measure)
                made += 1
        logits[: len(kept)] = kept
        return made

    def _usual(self) -> Iterator[Row]:
        """A row of each kind: mixed or not, tilted by each head, by all or by none, with a top k
        or without."""
        mixes: list[dict[str, float] | None] = [None]
        if self._members:
            mixes.append({name: 1.0 for name in ("base", *self._members)})
        tilts: list[Tilted | None] = [None]
        for columns, top_k in product(self._columns(), (None, _TOP_K)):
            tilts.append(Tilted(dict.fromkeys(columns, 1.0), top_k))
        for mix, tilt in product(mixes, tilts):
            if mix or tilt:
                yield Row(
                    prompt_length=1,
                    temperature=1.0,
                    values=None,
                    length=None,
                    tilt=tilt,
                    mix=mix,
                    path=None,
                )

    def _columns(self) -> list[range]:
        """The columns of each head alone, and of all together."""
        made, start = [], 0
        for head in self._heads:
            made.append(range(start, start + len(head.config.rewards)))
            start = made[-1].stop
        return made + [range(start)] * (len(made) > 1)

    def _mixture(self, behind: Mapping[str, Tensor], rows: Sequence[Row], base: Tensor) -> Mixture:
        names = list(dict.fromkeys((*self._members, *behind)))
        mixes = [row.mix or {} for row in rows]
        weights = [[mix.get(name, 0.0) for name in ("base", *names)] for mix in mixes]
        # Not read, where the weight is 0.
        absent = next(iter(behind.values()), base)
        return Mixture(
            members=tuple(behind.get(name, absent) for name in names),
            weights=tensor(weights, base.device),
            vocabulary=min(z.shape[1] for z in (base, *behind.values())),
        )

    def _tilt(self, hidden: Tensor, rows: Sequence[Row], lm_head: Tensor | None) -> Tilt | None:
        """What is added to the rows' logits, in factors; None if their weights are all 0."""
        parts, tokens = [], []
        for head, of_head in factors(self._heads, hidden, rows):
            if head.config.architecture == "tied":  # all its rewards have one B, which stays as is
                of_head = of_head.sum(1, keepdim=True)
            parts.append(of_head)
            tokens.append(_tokens(head, lm_head))
        if not tokens:
            return None
        known = max(b.shape[1] for b in tokens)
        top_k = [min(row.tilt.top_k or known, known) for row in rows if row.tilt]
        limited = any(row.tilt.top_k for row in rows if row.tilt)
        return Tilt(
            factors=tuple(parts),
            tokens=tuple(tokens),
            top_k=index(top_k, hidden.device) if limited else None,
            most=max(top_k) if limited else 0,
        )


def kind(row: Row) -> tuple[bool, bool, bool]:
    """Sorts rows that a launch has in common together, those that mix first."""
    return not row.mix, row.tilt is not None, row.tilt is not None and bool(row.tilt.top_k)


def _sizes(most: int) -> list[int]:
    """A number of rows for each tile that a batch of at most so many has."""
    return [
        min(rows, most)
        for rows, below in zip(ROW_TILES, (0, *ROW_TILES), strict=False)
        if most > below
    ]


def _tokens(head: QHead, lm_head: Tensor | None) -> Tensor:
    """B, ``[G, |V|, r]``; of a tied head the LM head's rows, in their own dtype, once for all G.

    Raises:
        ValueError: as ``QHead.matrix`` does.
    """
    if head.config.architecture == "lowrank":
        return head.tokens
    size = head.config.vocab_size or 0
    if lm_head is None or len(lm_head) < size or lm_head.shape[1] != head.config.hidden_size:
        return head.matrix(lm_head)
    return lm_head[None, :size]
