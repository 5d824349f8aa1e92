"""Mixes and tilts the logits of steered rows."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from vllm.utils.torch_utils import set_default_torch_dtype

from cdserve.worker.inputs import MemberLogits, to_device
from cdserve.worker.readback import READ_BACK, ReadBack
from cdserve.worker.rows import BOUNDED, MEASURED, MIXED, TILTED, TOP_K, SteeredRows
from cdserve.worker.tables import Tables
from cdserve.worker.warm_up import heaviest, usual
from value_heads import QHead
from value_heads.kernels import BatchMixture, BatchTilt, PathKL, operations

_MOST_BYTES = 1 << 28
"""Size of one float32 copy of the rows that are steered in one launch, at most."""
_LEAST_ROWS = 64
_KIND = MIXED | TILTED | TOP_K | BOUNDED
_RANK = np.zeros(_KIND + 1, np.int64)
"""Rank of each kind of row in the order of launches; within a launch, mixed rows come first."""
for _rank, _kind in enumerate(
    bounded | limit | steered
    for bounded in (0, BOUNDED)
    for limit, kinds in ((0, (MIXED, MIXED | TILTED, TILTED)), (TOP_K, (MIXED | TILTED, TILTED)))
    for steered in kinds
):
    _RANK[_kind] = _rank
_LAUNCHES = (3, 5, 8, 10)
"""End of each launch's ranks."""


class Steerer:
    """Mixes members and adds Q-heads' values in steered rows.

    The logits of a row become sum_i w_i z_i + sum_g (w_g / beta) Q_g(s, .): before temperature,
    penalties, bias and grammar masks, which vLLM applies to the result.
    Controlled Decoding (arXiv 2310.17022, equation 2); MOD (arXiv 2406.18853).

    Args:
        paths: folders of the Q-heads, in the order of the policies' columns.
        device: device of the model.
        vocabulary: number of tokens that the model has logits for.
        slots: maximum number of requests in the batch.
        reports: whether this worker writes the KL; exactly one worker does.
        fused: whether to use Triton kernels.
        members: names of the members.
        back: copies the KL to the host.

    Raises:
        ValueError: a head has values for more tokens than the vocabulary.
    """

    def __init__(
        self,
        paths: Sequence[str],
        device: torch.device,
        vocabulary: int,
        slots: int,
        reports: bool,
        fused: bool = False,
        members: Sequence[str] = (),
        back: ReadBack = READ_BACK,
    ) -> None:
        with set_default_torch_dtype(torch.float32):  # vLLM builds models in the served dtype
            self._heads = [QHead.from_pretrained(path).to(device) for path in paths]
        for path, head in zip(paths, self._heads, strict=True):
            if (head.config.vocab_size or 0) > vocabulary:
                raise ValueError(
                    f"Q-head {path} has values of {head.config.vocab_size} tokens; the model has "
                    f"{vocabulary}"
                )
        self._reports = reports
        self._members = tuple(members)
        self._tables = Tables(columns=2)
        self._back = back
        self._fused = fused
        self._kernels = operations(fused)
        self._paths = PathKL.zeros(slots, device)
        self._most = max(_LEAST_ROWS, _MOST_BYTES // (4 * vocabulary))

    @property
    def columns(self) -> int:
        """Number of outputs of all Q-heads."""
        return sum(len(head.config.rewards) for head in self._heads)

    @torch.inference_mode()
    def steer(
        self,
        logits: Tensor,
        hidden: Tensor,
        rows: SteeredRows,
        members: MemberLogits,
        lm_head: Tensor | None,
    ) -> Tensor:
        """Steers rows; returns the logits in float32.

        Args:
            logits: logits of the batch, ``[batch, |V|]``; other rows stay unchanged.
            hidden: hidden states of the base, ``[batch, d]``.
            rows: rows to steer.
            members: returns members' logits of rows of the batch, by name.
            lm_head: the model's output embedding, for tied heads.
        """
        steered = logits.float()
        for part in self._launches(rows):
            measured = part.any_flags & (MEASURED if self._reports else BOUNDED)
            self._launch(steered, logits, hidden, part, members, lm_head, bool(measured))
        return steered

    @torch.inference_mode()
    def warm_up(
        self, logits: Tensor, hidden: Tensor, members: MemberLogits, lm_head: Tensor | None
    ) -> int:
        """Compiles the kernels that steering launches, and allocates the memory that it needs.

        Args:
            logits, hidden, members, lm_head: as for ``steer``, of the largest batch. The logits
                stay unchanged.

        Returns:
            Number of kinds of rows compiled; 0 without kernels.
        """
        if logits.device.type == "cpu" and not self._fused:
            return 0
        wide, count, kinds = logits.float(), len(self._members), 0
        kept = wide.clone() if wide is logits else None
        # Once per number of rows, whether or not this worker measures: with tensor parallelism all
        # workers take part in computing the logits.
        by_size: dict[int, Mapping[str, Tensor]] = {}

        def once(rows: Tensor) -> Mapping[str, Tensor]:
            if len(rows) not in by_size:
                by_size[len(rows)] = members(rows)
            return by_size[len(rows)]

        # If another worker reports the KL, this one computes it only for rows with a budget.
        for measured in ((True,) if self._reports else (True, False)) if self._fused else ():
            for rows in usual(self._heads, count, len(wide), measured):
                self._launch(wide, logits, hidden, rows, once, lm_head, measured)
                kinds += 1
        by_size.clear()
        largest = heaviest(self._heads, count, len(wide))
        if largest is not None:
            self.steer(wide, hidden, largest, once, lm_head)
        if kept is not None:
            logits.copy_(kept)
        return kinds

    def _launches(self, rows: SteeredRows) -> Iterator[SteeredRows]:
        """Groups rows into launches, rows that mix first.

        Rows with a top k or a budget are launched separately. Launches that copy logits are split
        to bound their memory.
        """
        ranks = _RANK.take(rows.flags & _KIND)
        if not rows.uniform:
            order = ranks.argsort(kind="stable")
            rows, ranks = rows.of(order), ranks[order]
        start = 0
        for stop in [len(ranks)] if rows.uniform else np.searchsorted(ranks, _LAUNCHES).tolist():
            if start < stop:
                yield from self._tiles(
                    rows if stop - start == len(ranks) else rows.of(slice(start, stop))
                )
            start = stop

    def _tiles(self, rows: SteeredRows) -> Iterator[SteeredRows]:
        """Splits a launch whose copies of logits would exceed ``_MOST_BYTES``."""
        copied = not self._fused or rows.any_flags & (MIXED | TOP_K | BOUNDED)
        if len(rows.index) <= self._most or not copied:
            yield rows
            return
        for start in range(0, len(rows.index), self._most):
            yield rows.of(slice(start, start + self._most))

    def _launch(
        self,
        logits: Tensor,
        own: Tensor,
        hidden: Tensor,
        rows: SteeredRows,
        members: MemberLogits,
        lm_head: Tensor | None,
        measured: bool,
    ) -> None:
        """Steers rows in place in one launch; adds the KL to their paths if it is measured.

        The KL is known only after the logits are changed. Rows with a budget are therefore copied
        first, and restored where the step would exceed the budget.

        Args:
            logits: logits of the batch, float32 ``[batch, |V|]``.
            own: the same logits in the model's dtype.
        """
        bits, read = rows.flags & (MIXED | TILTED), rows.tokens - rows.response_starts
        index, slots, tokens, kinds, top_k, position = to_device(
            [rows.index, rows.slots, rows.tokens, bits, rows.top_k, read],
            np.int64,
            logits.device,
        )
        coefficients, weights, temperatures, budgets = to_device(
            [rows.coefficients, rows.weights, rows.temperatures, rows.budgets],
            np.float32,
            logits.device,
        )
        kept = logits[index] if rows.any_flags & BOUNDED else None
        mixture = tilt = None
        if rows.any_flags & MIXED:
            mixing = np.count_nonzero(rows.flags & MIXED)
            mixture = self._mixture(members(index[:mixing]), weights, own[:mixing])
        if rows.any_flags & TILTED:
            limits = (top_k, int(rows.top_k.max())) if rows.any_flags & TOP_K else None
            tilt = self._tilt(hidden[index], position, rows, coefficients, limits, lm_head)
        statistics = self._kernels.steer(
            logits,
            index,
            mixture=mixture,
            tilt=tilt,
            temperature=temperatures,
            measured=measured,
            kinds=kinds,
        )
        if statistics is None:
            return
        self._begin(rows)
        path_kl, exceeds_budget = self._kernels.charge(
            self._paths, slots, tokens, statistics.kl, budgets
        )
        if self._reports:
            self._back.submit(
                path_kl, partial(self._tables.write, rows.destinations, rows.tokens + 1)
            )
        if kept is not None:
            logits[index] = torch.where(exceeds_budget[:, None], kept, logits[index])

    def _begin(self, rows: SteeredRows) -> None:
        """Initialises the path KL of rows that draw their first token since taking their slot."""
        if len(rows.carried):
            begins = rows.begins.nonzero()[0]
            paths, device = self._paths, self._paths.at.device
            (slots,) = to_device([rows.slots[begins]], np.int64, device)
            (carried,) = to_device([rows.carried[begins]], np.float64, device)
            paths.spent[slots], paths.unsteered[slots] = carried[:, 0], carried[:, 1].int()
            paths.step.index_fill_(0, slots, 0.0)
            paths.step_unsteered.index_fill_(0, slots, 0)
            paths.at.index_fill_(0, slots, -1)

    def _mixture(self, behind: Mapping[str, Tensor], weights: Tensor, base: Tensor) -> BatchMixture:
        """The mixture over all members; Triton compiles one kernel for each set of members.

        Members that did not run have weight 0 and are not read; the base's logits stand in.
        """
        absent = next(iter(behind.values()), base)
        return BatchMixture(
            members=tuple(behind.get(name, absent) for name in self._members),
            weights=weights,
            vocabulary=min(z.shape[1] for z in (base, *behind.values())),
        )

    def _tilt(
        self,
        hidden: Tensor,
        position: Tensor,
        rows: SteeredRows,
        coefficients: Tensor,
        limits: tuple[Tensor, int] | None,
        lm_head: Tensor | None,
    ) -> BatchTilt | None:
        """Factors of the tilt of the rows; None if all coefficients are 0."""
        factors, tokens, start = [], [], 0
        for head in self._heads:
            columns = slice(start, start + len(head.config.rewards))
            start = columns.stop
            asked = np.count_nonzero(part := rows.coefficients[:, columns])
            if not asked:
                continue
            weights = (coefficients[:, columns] * head.scale)[:, :, None]
            u = head.factors(hidden, position) * weights
            if asked < part.size:  # keeps NaN of a head out of rows that do not use the head
                u = torch.where(weights == 0, 0.0, u)
            if head.config.architecture == "tied":  # all rewards of a tied head share one B
                u = u.sum(1, keepdim=True)
            factors.append(u)
            tokens.append(_tokens(head, lm_head))
        if not tokens:
            return None
        if limits is None:
            return BatchTilt(factors=tuple(factors), tokens=tuple(tokens))
        size = max(b.shape[1] for b in tokens)
        top_k, most = limits
        return BatchTilt(
            factors=tuple(factors),
            tokens=tuple(tokens),
            top_k=top_k.clamp(max=size),
            most=min(most, size),
        )


def _tokens(head: QHead, lm_head: Tensor | None) -> Tensor:
    """B, ``[G, |V|, r]``; for a tied head the LM head ``[1, |V|, d]`` in its own dtype.

    Raises:
        ValueError: as ``QHead.matrix`` does.
    """
    if head.config.architecture == "lowrank":
        return head.tokens
    size = head.config.vocab_size or 0
    if lm_head is None or len(lm_head) < size or lm_head.shape[1] != head.config.hidden_size:
        return head.matrix(lm_head)
    return lm_head[None, :size]
