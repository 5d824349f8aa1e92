"""The value heads inside the worker: hidden states in, values out, straight into the table."""

from collections.abc import Sequence

import numpy as np
import torch
from vllm.utils.torch_utils import set_default_torch_dtype

from cdserve.plugin.rows import ROWS, ValueRow
from cdserve.value_table import TableView
from value_heads import ValueHead

_MAX_OPEN_TABLES = 16


class ValueScorer:
    """All heads of the server, applied to the rows that ask.

    Args:
        paths: the heads' folders, in the order of the table's columns.
        device: where the model runs.
    """

    def __init__(self, paths: Sequence[str], device: torch.device) -> None:
        with set_default_torch_dtype(torch.float32):  # vLLM builds models in the served dtype
            self._heads = [ValueHead.from_pretrained(path).to(device) for path in paths]
        self._columns = sum(len(head.config.rewards) for head in self._heads)
        self._tables: dict[str, TableView] = {}

    def score_last(self, hidden: torch.Tensor) -> None:
        """Scores the prefixes behind this step's logits.

        Args:
            hidden: what the logits are computed from, ``[rows, d]``, in batch order.
        """
        rows = ROWS.take()
        if not rows:
            return
        values = self._values(hidden[list(rows)])
        by_table: dict[str, list[int]] = {}
        for i, row in enumerate(rows.values()):
            by_table.setdefault(row.ticket.path, []).append(i)
        due = list(rows.values())
        for indices in by_table.values():
            group = [due[i] for i in indices]
            self._write(group, np.array([row.length for row in group]), values[indices])

    def score_every(
        self, hidden: torch.Tensor, positions: torch.Tensor, starts: Sequence[int]
    ) -> None:
        """Scores every prefix of the prompts that ask for it.

        Args:
            hidden: the step's hidden states, ``[tokens, d]``.
            positions: each token's position in its sequence, ``[tokens]``.
            starts: where each row's tokens begin, and where the last row's end.
        """
        for index, row in ROWS.every_position().items():
            span = slice(starts[index], starts[index + 1])
            lengths = positions[span].cpu().numpy() + 1
            self._write([row] * len(lengths), lengths, self._values(hidden[span]))

    @torch.inference_mode()
    def _values(self, hidden: torch.Tensor) -> np.ndarray:  # [N, d] -> [N, G] float32
        return torch.cat([head(hidden) for head in self._heads], dim=-1).cpu().numpy()

    def _write(self, rows: Sequence[ValueRow], lengths: np.ndarray, values: np.ndarray) -> None:
        """Into the rows' common table."""
        tickets = np.array([row.ticket.number for row in rows])
        offsets = np.array([row.ticket.offset for row in rows])
        rings = np.array([row.ticket.length for row in rows])
        self._table(rows[0].ticket.path).write(offsets + lengths % rings, tickets, lengths, values)

    def _table(self, path: str) -> TableView:
        table = self._tables.get(path)
        if table is None:
            if len(self._tables) >= _MAX_OPEN_TABLES:
                del self._tables[next(iter(self._tables))]
            table = self._tables[path] = TableView.open(path, self._columns)
        return table
