"""log p of tokens inside the worker, under the base and members: logits in, sums out."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdserve.plugin.rows import Ahead, Row
from cdserve.plugin.tables import Tables

Logits = Mapping[str, Tensor]
"""``[N, |V|]`` by model: ``base``, and the members that ran."""
_SLICE = 256
"""Positions of a text whose logits are in memory at once."""


class Likelihoods:
    """Sums log p of the tokens of rows that ask, in nats, and writes the sum of each prefix.

    A step's log-probabilities are kept for the next one, where the token drawn from them is an
    input. So the sum of a prefix is there one step after its last token was drawn, and no model
    runs for it again.

    All workers of a model in parts sum, since a text's logits take all of them to compute.

    Args:
        models: the table's columns: ``base`` and members.
        reports: whether this worker writes the sums; one of them does.
    """

    def __init__(self, models: Sequence[str], reports: bool) -> None:
        self._models = tuple(models)
        self._reports = reports
        self._tables = Tables(len(models))

    @torch.inference_mode()
    def step(self, rows: Mapping[int, Row], last: Tensor, logits: Logits) -> None:
        """Takes each row one token further.

        Args:
            rows: those that ask, by batch index.
            last: the last token of each prefix, ``[batch]``.
            logits: those of the tokens to come, of the whole batch.
        """
        index, asking = list(rows), list(rows.values())
        self._grow(asking, last[index])
        columns, logprobs = self._logprobs({name: z[index] for name, z in logits.items()})
        for i, row in enumerate(asking):
            row.ahead = Ahead(logprobs, i, columns, row.tokens)
        known = [row for row in asking if row.total is not None]
        self._write(known, [row.tokens for row in known], [row.total for row in known])

    @torch.inference_mode()
    def text(
        self, row: Row, tokens: Tensor, before: int, logits: Callable[[slice], Logits]
    ) -> None:
        """Goes on with a row whose tokens are given.

        Nothing is written where the logits behind its first token were not computed.

        Args:
            tokens: of this step, ``[N]``.
            before: tokens of the row in earlier steps, or cached.
            logits: gives those that follow some of the tokens.
        """
        assert row.since is not None
        begin = max(0, row.since - 1 - before)
        if begin >= len(tokens):
            return
        if before + begin == row.since - 1:
            row.total = np.zeros(len(self._models))
        elif row.ahead is None or row.ahead.tokens != before:
            row.total = None
        for start in range(begin, len(tokens), _SLICE):
            part = tokens[start : start + _SLICE]
            columns, logprobs = self._logprobs(logits(slice(start, start + len(part))))
            ahead, row.ahead = (
                row.ahead,
                Ahead(logprobs[-1:].clone(), 0, columns, before + start + len(part)),
            )
            if row.total is None:
                continue
            found = logprobs[torch.arange(len(part) - 1), :, part[1:]]
            if ahead is not None:
                found = torch.cat([ahead.logprobs[ahead.index, :, part[:1]].T, found])
            added = np.zeros((len(found), len(self._models)))
            added[:, columns] = found.double().cpu().numpy()
            sums = row.total + added.cumsum(0)
            if len(sums):
                row.total = sums[-1]
                end = before + start + len(part)
                self._write([row] * len(sums), range(end - len(sums) + 1, end + 1), sums)

    def _grow(self, rows: Sequence[Row], last: Tensor) -> None:
        """Adds log p of each row's last token, looked up in what was kept the step before."""
        together: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            if row.tokens == row.prompt_length:
                row.total = np.zeros(len(self._models))
            elif row.ahead is None or row.ahead.tokens != row.tokens - 1:
                row.total = None  # back from preemption
            elif row.total is not None:
                together.setdefault(id(row.ahead.logprobs), []).append(i)
        for group in together.values():
            kept = [ahead for i in group if (ahead := rows[i].ahead)]
            found = kept[0].logprobs[[ahead.index for ahead in kept], :, last[group]]
            for i, ahead, added in zip(group, kept, found.double().cpu().numpy(), strict=True):
                total = rows[i].total
                assert total is not None
                total[ahead.columns] += added

    def _logprobs(self, logits: Logits) -> tuple[list[int], Tensor]:
        """The columns of the models that ran, and their log-probabilities ``[N, models, |V|]``."""
        columns = [i for i, name in enumerate(self._models) if name in logits]
        stacked = torch.stack([logits[self._models[i]] for i in columns], dim=1)
        return columns, stacked.float().log_softmax(-1)

    def _write(
        self,
        rows: Sequence[Row],
        lengths: Sequence[int],
        sums: Sequence[npt.NDArray[np.float64] | None] | npt.NDArray[np.float64],
    ) -> None:
        if rows and self._reports:
            tickets = [row.likelihood for row in rows if row.likelihood is not None]
            self._tables.write(tickets, lengths, np.array(sums, np.float32))
