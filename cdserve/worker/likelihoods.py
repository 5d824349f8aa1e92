"""Sums log p of tokens under the base and members, from the logits of each step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdserve.worker.inputs import to_device
from cdserve.worker.readback import READ_BACK, ReadBack
from cdserve.worker.rows import LogprobRows, Masks
from cdserve.worker.tables import Tables
from cdserve.worker.tickets import Destinations, Ints

Logits = Mapping[str, Tensor]
"""Logits ``[n, |V|]`` by model: ``base`` and the members that ran."""
SLICE = 256
"""Positions or rows whose log-probabilities are in memory at once."""
_NEVER = -1


class Likelihoods:
    """Sums log p of tokens per row, in nats, and writes the sum of each prefix.

    The logits of a step are kept for the next step, whose input is the token drawn from them. The
    sum of a prefix is thus known one step after its last token was drawn, without another forward
    pass. The sums stay on the device; no step waits for them.

    With tensor parallelism all workers sum, since computing the logits of a text takes all of them.

    Args:
        models: columns of the table: ``base`` and members.
        slots: maximum number of requests in the batch.
        reports: whether this worker writes the sums; exactly one worker does.
        back: copies the sums to the host.
    """

    def __init__(
        self, models: Sequence[str], slots: int, reports: bool, back: ReadBack = READ_BACK
    ) -> None:
        self._models = tuple(models)
        self._reports = reports
        self._tables = Tables(len(models))
        self._back = back
        # By slot, on the host: the request, and the prefix length of its sum.
        self._request = np.full(slots, _NEVER, np.int64)
        self._at = np.full(slots, _NEVER, np.int64)
        self._known = np.zeros(slots, np.bool_)
        self._ran = np.zeros((slots, len(models)), np.bool_)
        self._kept: Tensor | None = None
        self._log_sum_exp = torch.empty(0)
        self._sums = torch.empty(0)

    def _prepare(self, logits: Tensor) -> None:
        """Allocates the logits kept between steps: ``[slots, models, |V|]`` in the logits' dtype.

        Args:
            logits: logits of a step, ``[n, |V|]``.
        """
        if self._kept is not None:
            return
        size, device = self._ran.shape, logits.device
        self._kept = logits.new_full((*size, logits.shape[1]), -torch.inf)
        self._log_sum_exp = torch.zeros(size, dtype=torch.float32, device=device)
        self._sums = torch.zeros(size, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def warm_up(self, logits: Logits) -> None:
        """Allocates what a step with the largest batch allocates."""
        self._prepare(logits["base"])
        every = torch.arange(min(len(logits["base"]), len(self._at)), device=logits["base"].device)
        self._keep(logits, every, every)

    @torch.inference_mode()
    def step(self, rows: LogprobRows, last: Tensor, logits: Logits) -> None:
        """Adds log p of the last token of each row.

        Args:
            rows: rows that sum log p of drawn tokens.
            last: last token of each prefix, ``[batch]``.
            logits: logits of the next tokens, of the whole batch.
        """
        self._prepare(logits["base"])
        goes_on = self._goes_on(rows.slots, rows.requests, rows.tokens - 1) & ~rows.first
        ran = self._ran[rows.slots] & goes_on[:, None]
        index, slots = to_device([rows.index, rows.slots], np.int64, last.device)
        known, added = to_device([goes_on[:, None], ran], np.bool_, last.device)
        sums = torch.where(known, self._sums[slots], 0.0)
        sums += torch.where(added, self._log_p(slots, last[index]), 0.0)
        self._sums[slots] = sums
        self._write(sums, rows.destinations, rows.tokens, goes_on | rows.first)
        self._keep(logits, index, slots)
        self._store(rows.slots, rows.requests, rows.tokens, goes_on | rows.first, logits)

    @torch.inference_mode()
    def text(
        self,
        slot: int,
        request: int,
        destinations: Destinations,
        loglik_start: int,
        computed: int,
        tokens: Tensor,
        logits: Callable[[slice], Logits],
    ) -> None:
        """Adds log p of the given tokens of a row that this step computes.

        Nothing is written if the logits of the first token were not computed.

        Args:
            slot: slot of the request.
            request: unique number of the request.
            destinations: where the sums are written, ``[1]``.
            loglik_start: tokens before the first whose log p is summed.
            computed: tokens of the row in earlier steps, or cached.
            tokens: tokens of this step, int ``[n]``.
            logits: returns the logits after a slice of the tokens.
        """
        begin = max(0, loglik_start - 1 - computed)
        first = computed + begin == loglik_start - 1
        slots, requests = np.array([slot]), np.array([request])
        known = np.array([first]) | self._goes_on(slots, requests, np.array([computed]))
        for start in range(begin, len(tokens), SLICE):
            part = tokens[start : start + SLICE]
            end = computed + start + len(part)
            part_logits = logits(slice(start, start + len(part)))
            self._prepare(part_logits["base"])
            sums = self._sums_of(slot, part, part_logits, fresh=first and start == begin)
            of_row = np.zeros(len(sums), np.int64)
            self._sums[slot] = sums[-1] if len(sums) else 0.0
            if len(sums):
                lengths = np.arange(end - len(sums), end) + 1
                self._write(sums, destinations.of(of_row), lengths, known[of_row])
            self._keep_last(slot, part_logits)
            self._store(slots, requests, np.array([end]), known, part_logits)

    def _goes_on(self, slots: Ints, requests: Ints, tokens: Ints) -> Masks:
        """Whether the sums in these slots belong to these requests and prefix lengths.

        They do not after a preemption, or if the slot held another request.
        """
        same = (self._request[slots] == requests) & (self._at[slots] == tokens)
        continues: Masks = same & self._known[slots]
        return continues

    def _store(
        self, slots: Ints, requests: Ints, tokens: Ints, known: Masks, logits: Logits
    ) -> None:
        """Stores which prefixes and models the kept logits belong to."""
        self._request[slots], self._at[slots], self._known[slots] = requests, tokens, known
        self._ran[slots] = [name in logits for name in self._models]

    def _log_p(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """log p of tokens ``[n]`` under the logits kept in their slots, float64 ``[n, models]``."""
        assert self._kept is not None
        return self._kept[slots, :, tokens.long()].double() - self._log_sum_exp[slots]

    def _keep(self, logits: Logits, index: Tensor, slots: Tensor) -> None:
        """Keeps the logits of these rows of the batch in their slots."""
        assert self._kept is not None
        for name, of_model in self._named(logits):
            parts = torch.split(index, SLICE), torch.split(slots, SLICE)
            for rows, of_rows in zip(*parts, strict=True):
                part = of_model[rows]
                width = min(part.shape[1], self._kept.shape[2])
                self._kept[of_rows, name, :width] = part[:, :width].to(self._kept.dtype)
                self._log_sum_exp[of_rows, name] = part.float().logsumexp(-1)

    def _keep_last(self, slot: int, logits: Logits) -> None:
        """Keeps the logits of the last position in a slot."""
        base = logits["base"]
        last = torch.full((1,), len(base) - 1, device=base.device)
        self._keep(logits, last, torch.full_like(last, slot))

    def _sums_of(self, slot: int, tokens: Tensor, logits: Logits, fresh: bool) -> Tensor:
        """Sums up to each token, float64 ``[n, models]``.

        Args:
            slot: slot of the sum to continue.
            logits: logits after each token.
            fresh: whether the sum begins after the first token, which then has none.
        """
        tokens = tokens.long()
        at = torch.full((1,), slot, device=tokens.device)
        positions = torch.arange(len(tokens) - 1, device=tokens.device)
        added = self._sums.new_zeros(len(tokens), len(self._models))
        if not fresh:
            (ran,) = to_device([self._ran[slot]], np.bool_, tokens.device)
            log_p = torch.where(ran, self._log_p(at, tokens[:1])[0], 0.0)
            added[0] = self._sums[slot] + log_p
        for name, of_model in self._named(logits):
            follow = of_model[positions, tokens[1:]].double()
            added[1:, name] = follow - of_model[:-1].float().logsumexp(-1)
        return added.cumsum(0)[int(fresh) :]

    def _named(self, logits: Logits) -> list[tuple[int, Tensor]]:
        """Columns and logits of the models that ran."""
        return [(i, logits[name]) for i, name in enumerate(self._models) if name in logits]

    def _write(
        self, sums: Tensor, destinations: Destinations, lengths: Ints, known: npt.NDArray[np.bool_]
    ) -> None:
        """Writes the sums of prefixes that are known."""
        if self._reports:
            table = np.where(known, destinations.table, _NEVER)
            deliver = partial(self._tables.write, destinations._replace(table=table), lengths)
            self._back.submit(sums.float(), deliver)
