"""Steering inside the worker: a step's logits in, those of the steered rows changed in place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.utils.torch_utils import set_default_torch_dtype

from cdserve.plugin.rows import Row
from cdserve.plugin.tables import Tables
from cdserve.value_table import Ticket
from value_heads import QHead, centred_on_top_k, kl, mixed

Rows = Tensor | slice
"""Rows of a tensor: an index, or a range of them, which copies nothing."""


class Steerer:
    """Members mixed and Q-heads' values added, in the rows that ask.

    Row by row the logits become sum_i w_i z_i + sum_g (w_g / beta) Q_g(s, .): before temperature,
    penalties, bias and grammar masks, which vLLM applies to the result as to any model's logits.
    Controlled Decoding (arXiv 2310.17022, equation 2); MOD (arXiv 2406.18853).

    Args:
        paths: the Q-heads' folders, in the order of the policy's columns.
        device: where the model runs.
        vocabulary: tokens that the model has logits of.
        reports: whether this worker writes the KL; one of them does.

    Raises:
        ValueError: a head has values of more tokens than that.
    """

    def __init__(
        self, paths: Sequence[str], device: torch.device, vocabulary: int, reports: bool
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
        self._tables = Tables(columns=2)

    @torch.inference_mode()
    def steer(
        self,
        logits: Tensor,
        hidden: Tensor,
        rows: Mapping[int, Row],
        members: Callable[[Rows], Mapping[str, Tensor]],
        lm_head: Tensor | None,
    ) -> Tensor:
        """The step's logits with those of ``rows`` steered, in float32.

        Args:
            logits: ``[batch, |V|]``; rows that are not named stay as they are.
            hidden: the base's hidden states behind them, ``[batch, d]``.
            members: gives members' logits ``[N, |V|]`` of N rows of the batch, by name.
            lm_head: the model's output embedding, which tied heads read.
        """
        logits = logits.float()
        asking = list(rows.values())
        index = _places(list(rows), logits.device)
        before = logits[index]
        after = self._mixed(before, list(rows), asking, members)
        after = self._tilted(after, hidden[index], asking, lm_head)
        after = self._within_budgets(asking, before, after)
        logits[index] = after
        return logits

    def _mixed(
        self,
        logits: Tensor,
        indices: Sequence[int],
        rows: Sequence[Row],
        members: Callable[[Rows], Mapping[str, Tensor]],
    ) -> Tensor:
        chosen = [i for i, row in enumerate(rows) if row.mix]
        if not chosen:
            return logits
        place = _places(chosen, logits.device)
        behind = members(_places([indices[i] for i in chosen], logits.device))
        part = mixed(logits[place], behind, [rows[i].mix or {} for i in chosen])
        return _put(part, logits, place, len(chosen))

    def _tilted(
        self, logits: Tensor, hidden: Tensor, rows: Sequence[Row], lm_head: Tensor | None
    ) -> Tensor:
        chosen = [i for i, row in enumerate(rows) if row.tilt is not None]
        if not chosen:
            return logits
        place = _places(chosen, logits.device)
        asking = [rows[i] for i in chosen]
        delta = self._delta(hidden[place], asking, lm_head)
        known = logits[place, : delta.shape[1]]
        part = self._limited(delta, known, asking).add_(known)
        if part.shape[1] < logits.shape[1]:  # tokens that the head has no values of
            part = torch.cat([part, logits[place, part.shape[1] :]], dim=1)
        return _put(part, logits, place, len(chosen))

    def _delta(self, hidden: Tensor, rows: Sequence[Row], lm_head: Tensor | None) -> Tensor:
        """sum_g (w_g / beta) (Q_g(s, .) - v_g(s)); what all tokens share changes nothing."""
        total: Tensor | None = None
        column = 0
        for head in self._heads:
            columns = range(column, column + len(head.config.rewards))
            column = columns.stop
            by_row = [
                [row.tilt.coefficients.get(c, 0.0) for c in columns] for row in rows if row.tilt
            ]
            if not any(map(any, by_row)):
                continue
            weights = _tensor(by_row, hidden.device) * head.scale
            factors = head.factors(hidden) * weights[:, :, None]
            tokens = head.matrix(lm_head)
            part = factors.flatten(1) @ tokens.transpose(1, 2).flatten(0, 1)
            total = part if total is None else total.add_(part)
        assert total is not None  # a tilted row names a column
        return total

    def _limited(self, delta: Tensor, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """The tilt, in rows with a ``top_k`` about its mean over the k most likely tokens there."""
        limited = [i for i, row in enumerate(rows) if row.tilt is not None and row.tilt.top_k]
        if limited:
            index = torch.tensor(limited, device=delta.device)
            vocabulary = delta.shape[1]
            top_k = [min(tilt.top_k or 0, vocabulary) for i in limited if (tilt := rows[i].tilt)]
            delta[index] = centred_on_top_k(
                delta[index],
                logits[index],
                torch.tensor(top_k, device=delta.device),
            )
        return delta

    def _within_budgets(self, rows: Sequence[Row], before: Tensor, after: Tensor) -> Tensor:
        """The steered logits, those before where a row's budget is spent; writes the KL."""
        told = [(i, row, row.path) for i, row in enumerate(rows) if row.path is not None]
        if not told or not (self._reports or any(row.budget is not None for row in rows)):
            return after
        temperatures = [row.temperature for row in rows]
        plain = all(t in (0.0, 1.0) for t in temperatures)
        temperature = None if plain else _tensor(temperatures, before.device)
        nats = kl(before, after, temperature).tolist()
        spent = [i for i, row, path in told if not self._resumed(row, path).affords(nats[i])]
        if spent:
            after = after.clone()
            after[spent] = before[spent]
        if self._reports:
            lengths = [row.tokens + 1 for _, row, _ in told]
            paths = np.array([row.path_so_far for _, row, _ in told], np.float32)
            self._tables.write([path for _, _, path in told], lengths, paths)
        return after

    def _resumed(self, row: Row, path: Ticket) -> Row:
        """The row; if its request was preempted, with what its path was before."""
        if row.at < 0 and row.tokens > row.prompt_length:
            found = self._tables.view(path.path).read(path, row.tokens)
            row.spent, row.unsteered = 0.0, 0
            if found is not None:
                row.spent, row.unsteered = float(found[0]), int(found[1])
        return row


def _places(indices: Sequence[int], device: torch.device) -> Rows:
    start, stop = indices[0], indices[0] + len(indices)
    if list(indices) == list(range(start, stop)):
        return slice(start, stop)
    return torch.tensor(indices, device=device)


def _put(part: Tensor, whole: Tensor, place: Rows, count: int) -> Tensor:
    """``whole`` with ``part`` in these rows, ``whole`` itself left alone."""
    if count == len(whole):
        return part
    copy = whole.clone()
    copy[place] = part
    return copy


def _tensor(values: Sequence[Any], device: torch.device) -> Tensor:  # faster than torch.tensor
    return torch.from_numpy(np.array(values, np.float32)).to(device)
