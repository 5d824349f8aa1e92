"""Steering inside the worker: a step's logits in, those of the steered rows changed in place."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from vllm.utils.torch_utils import set_default_torch_dtype

from cdserve.plugin.rows import Row
from cdserve.plugin.tables import Tables
from value_heads import QHead, centred_on_top_k, kl


class Steerer:
    """All Q-heads of the server, applied to the rows that ask.

    Row by row the logits become z + sum_g (w_g / beta) Q_g(s, .): before temperature, penalties,
    bias and grammar masks, which vLLM applies to the result as to any model's logits. Controlled
    Decoding (arXiv 2310.17022, equation 2).

    Args:
        paths: the heads' folders, in the order of the policy's columns.
        device: where the model runs.
        reports: whether this worker writes the KL; one of them does.
    """

    def __init__(self, paths: Sequence[str], device: torch.device, reports: bool) -> None:
        with set_default_torch_dtype(torch.float32):  # vLLM builds models in the served dtype
            self._heads = [QHead.from_pretrained(path).to(device) for path in paths]
        self._columns = [(h, g) for h in self._heads for g in range(len(h.config.rewards))]
        self._reports = reports
        self._tables = Tables(columns=1)

    @torch.inference_mode()
    def tilt(
        self, logits: Tensor, hidden: Tensor, rows: Mapping[int, Row], lm_head: Tensor | None
    ) -> Tensor:
        """The step's logits with those of ``rows`` tilted, in float32.

        Args:
            logits: ``[batch, >= |V|]``; rows that are not named stay as they are.
            hidden: what they are computed from, ``[batch, d]``.
            lm_head: the model's output embedding, which tied heads read.
        """
        logits = logits.float()
        index = torch.tensor(list(rows), device=logits.device)
        before = logits[index]
        after = before.clone()
        delta = self._delta(hidden[index], list(rows.values()), lm_head)
        after[:, : delta.shape[1]] += self._limited(delta, before, list(rows.values()))
        logits[index] = after
        if self._reports:
            self._report(list(rows.values()), before, after)
        return logits

    def _delta(self, hidden: Tensor, rows: Sequence[Row], lm_head: Tensor | None) -> Tensor:
        """sum_g (w_g / beta) (Q_g(s, .) - v_g(s)); what all tokens share changes nothing."""
        total: Tensor | None = None
        column = 0
        for head in self._heads:
            count = len(head.config.rewards)
            by_row = [
                [row.tilt.coefficients.get(column + g, 0.0) for g in range(count)]
                for row in rows
                if row.tilt is not None
            ]
            column += count
            if not any(map(any, by_row)):
                continue
            weights = torch.tensor(by_row, device=hidden.device) * head.scale
            factors = head.factors(hidden) * weights[:, :, None]
            tokens = head.matrix(lm_head)
            part = factors.flatten(1) @ tokens.transpose(1, 2).flatten(0, 1)
            total = part if total is None else total + part
        assert total is not None  # a tilted row names a column
        return total

    def _limited(self, delta: Tensor, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        limited = [i for i, row in enumerate(rows) if row.tilt is not None and row.tilt.top_k]
        if limited:
            index = torch.tensor(limited, device=delta.device)
            vocabulary = delta.shape[1]
            top_k = [min(tilt.top_k or 0, vocabulary) for i in limited if (tilt := rows[i].tilt)]
            delta[index] = centred_on_top_k(
                delta[index],
                logits[index, :vocabulary],
                torch.tensor(top_k, device=delta.device),
            )
        return delta

    def _report(self, rows: Sequence[Row], before: Tensor, after: Tensor) -> None:
        temperature = torch.tensor([row.temperature for row in rows], device=before.device)
        spent = [
            self._resumed(row).spend(nats)
            for row, nats in zip(rows, kl(before, after, temperature).tolist(), strict=True)
        ]
        tickets = [row.path for row in rows if row.path is not None]
        lengths = [row.tokens + 1 for row in rows]
        self._tables.write(tickets, lengths, torch.tensor(spent)[:, None].numpy())

    def _resumed(self, row: Row) -> Row:
        """The row; if its request was preempted, with the KL that it had spent before."""
        if row.at < 0 and row.output and row.path is not None:
            found = self._tables.view(row.path.path).read(row.path, row.tokens)
            row.spent = 0.0 if found is None else float(found[0])
        return row
