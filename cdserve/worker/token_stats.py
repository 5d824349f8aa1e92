"""Statistics of tokens under the base and members, from the logits of each step.

A statistic is named by a model (``base`` or a member), or by a model and a confidence:

- ``base``: log p of the token, in nats.
- ``base.self_certainty``: KL(U || p) = -(1/V) sum_v log(V p_v), with U uniform over the vocabulary
  (arXiv 2502.18581).
- ``base.negative_entropy``: sum_v p_v log p_v.
- ``base.top_20``: -(1/k) sum of log p_v over the k = 20 most likely tokens (arXiv 2508.15260).

p is the model's own next-token distribution at the token's position: the softmax of the raw
logits, before temperature, top-p, penalties, grammars and steering.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cdserve.worker.inputs import to_device
from cdserve.worker.readback import READ_BACK, ReadBack
from cdserve.worker.rows import Masks, StatRows
from cdserve.worker.tables import Tables
from cdserve.worker.tickets import Destinations, Ints

Logits = Mapping[str, Tensor]
"""Logits ``[n, |V|]`` by model: ``base`` and the members that ran."""
Confidence = Callable[[Tensor], Tensor]
"""Maps log-probabilities ``[n, |V|]`` to confidences ``[n]``."""
SLICE = 256
"""Positions or rows whose logits are gathered at once."""
_DISTRIBUTIONS = 64
"""Rows whose log-probabilities over the vocabulary are in memory at once."""
_NEVER = -1


class TokenStats:
    """Writes the statistics of each token of a row, once it is known.

    The logits of a step are kept for the next step, whose input is the token drawn from them. The
    statistics of a token are thus known one step after it was drawn, without another forward pass.
    They are written as the row of the prefix that the token ends; no step waits for them.

    With tensor parallelism all workers compute them, since computing the logits of a text takes all
    of them. vLLM gathers the logits of all shards and cuts off the padding of the vocabulary.

    Args:
        names: statistics, the columns of the table.
        slots: maximum number of requests in the batch.
        reports: whether this worker writes; exactly one worker does.
        back: copies the statistics to the host.
    """

    def __init__(
        self, names: Sequence[str], slots: int, reports: bool, back: ReadBack = READ_BACK
    ) -> None:
        self._columns: dict[str, list[tuple[int, Confidence | None]]] = {}
        for column, name in enumerate(names):
            model, _, confidence = name.partition(".")
            of_model = self._columns.setdefault(model, [])
            of_model.append((column, _confidence(confidence)))
        # Column of log p of each model that has it; the logits of these models are kept.
        self._log_p = {m: c for m, cs in self._columns.items() for c, of in cs if of is None}
        self._width = len(names)
        self._reports = reports
        self._tables = Tables(len(names))
        self._back = back
        # By slot, on the host: the request, and the length of the prefix before its next token.
        self._request = np.full(slots, _NEVER, np.int64)
        self._at = np.full(slots, _NEVER, np.int64)
        self._kept: Tensor | None = None
        self._next = torch.empty(0)

    @property
    def reads_tokens(self) -> bool:
        """Whether some statistic depends on the token itself, and not on its distribution alone."""
        return bool(self._log_p)

    def _prepare(self, logits: Tensor) -> None:
        """Allocates what is kept between steps.

        ``_kept``, ``[slots, models, |V|]``, are logits, in their dtype. ``_next``, float32
        ``[slots, columns]``, holds confidences, and where log p is asked for its part that does not
        depend on the token, -log sum exp.

        Args:
            logits: logits of a step, ``[n, |V|]``.
        """
        if self._kept is not None:
            return
        slots = len(self._at)
        self._kept = logits.new_full((slots, len(self._log_p), logits.shape[1]), -torch.inf)
        self._next = logits.new_zeros((slots, self._width), dtype=torch.float32)

    @torch.inference_mode()
    def warm_up(self, logits: Logits) -> None:
        """Allocates what a step with the largest batch allocates."""
        self._prepare(logits["base"])
        every = torch.arange(min(len(logits["base"]), len(self._at)), device=logits["base"].device)
        self._keep(logits, every, every, np.ones(self._width, np.bool_))

    @torch.inference_mode()
    def step(self, rows: StatRows, last: Tensor, logits: Logits) -> None:
        """Writes the statistics of the last token of each row.

        Args:
            rows: rows with statistics of drawn tokens.
            last: last token of each prefix, ``[batch]``; not used unless ``reads_tokens``.
            logits: logits of the next tokens, of the whole batch.
        """
        self._prepare(logits["base"])
        known = self._goes_on(rows.slots, rows.requests, rows.tokens - 1)
        index, slots = to_device([rows.index, rows.slots], np.int64, logits["base"].device)
        tokens = last[index] if self.reads_tokens else None
        known &= rows.tokens > rows.since
        self._write(self._of(slots, tokens), rows.destinations, rows.tokens, known)
        self._keep(logits, index, slots, rows.wanted)
        self._request[rows.slots], self._at[rows.slots] = rows.requests, rows.tokens

    @torch.inference_mode()
    def text(
        self,
        slot: int,
        request: int,
        destinations: Destinations,
        since: int,
        computed: int,
        tokens: Tensor,
        logits: Callable[[slice], Logits],
        wanted: Masks,
    ) -> None:
        """Writes the statistics of the given tokens of a row that this step computes.

        Those of a token are not written if the logits before it were not computed.

        Args:
            slot: slot of the request.
            request: unique number of the request.
            destinations: where the statistics are written, ``[1]``.
            since: tokens before the first with statistics.
            computed: tokens of the row in earlier steps, or cached.
            tokens: tokens of this step, int ``[n]``.
            logits: returns the logits after a slice of the tokens.
            wanted: statistics that the row needs, ``[columns]``.
        """
        begin = max(0, since - 1 - computed)
        slots, requests = np.array([slot]), np.array([request])
        at = torch.full((1,), slot, device=tokens.device)
        for start in range(begin, len(tokens), SLICE):
            part = tokens[start : start + SLICE]
            after = logits(slice(start, start + len(part)))
            self._prepare(after["base"])
            lengths = np.arange(computed + start, computed + start + len(part)) + 1
            known = np.ones(len(part), np.bool_)
            known[:1] = self._goes_on(slots, requests, lengths[:1] - 1)
            values = torch.cat([self._of(at, part[:1]), self._given(after, part, wanted)])
            self._write(values, destinations.of(np.zeros(len(part), np.int64)), lengths, known)
            self._keep(after, torch.full_like(at, len(part) - 1), at, wanted)
            self._request[slot], self._at[slot] = request, lengths[-1]

    def _goes_on(self, slots: Ints, requests: Ints, tokens: Ints) -> Masks:
        """Whether what these slots keep follows these prefixes of these requests.

        It does not after a preemption, or if the slot held another request.
        """
        same: Masks = (self._request[slots] == requests) & (self._at[slots] == tokens)
        return same

    def _of(self, slots: Tensor, tokens: Tensor | None) -> Tensor:
        """Statistics of tokens ``[n]`` by what is kept in their slots, ``[n, columns]``.

        Args:
            tokens: the tokens; None where no statistic depends on them.
        """
        assert self._kept is not None
        values = self._next[slots]
        if tokens is not None:
            for place, column in enumerate(self._log_p.values()):
                values[:, column] += self._kept[slots, place, tokens.long()].float()
        return values

    def _given(self, logits: Logits, tokens: Tensor, wanted: Masks) -> Tensor:
        """Statistics of all given tokens but the first, ``[n - 1, columns]``.

        Args:
            logits: logits after each token.
            tokens: the tokens, ``[n]``.
            wanted: statistics to compute, ``[columns]``.
        """
        following = tokens[1:].long()
        positions = torch.arange(len(following), device=tokens.device)
        values = self._next.new_zeros(len(following), self._width)
        for model in self._columns.keys() & logits.keys():
            self._describe(model, logits[model][:-1], wanted, values)
            if (column := self._log_p.get(model)) is not None:
                values[:, column] += logits[model][positions, following].float()
        return values

    def _keep(self, logits: Logits, index: Tensor, slots: Tensor, wanted: Masks) -> None:
        """Keeps what these rows of the batch say of their next tokens in their slots."""
        assert self._kept is not None
        described = self._next.new_zeros(len(index), self._width)
        places = {model: place for place, model in enumerate(self._log_p)}
        for model in self._columns.keys() & logits.keys():
            parts = (torch.split(one, SLICE) for one in (index, slots, described))
            for rows, of_rows, out in zip(*parts, strict=True):
                part = logits[model][rows]
                self._describe(model, part, wanted, out)
                if model in places and wanted[self._log_p[model]]:
                    width = min(part.shape[1], self._kept.shape[2])
                    kept = part[:, :width].to(self._kept.dtype)
                    self._kept[of_rows, places[model], :width] = kept
        self._next[slots] = described

    def _describe(self, model: str, logits: Tensor, wanted: Masks, out: Tensor) -> None:
        """Writes what a model's logits say of any next token into its wanted columns.

        Args:
            logits: logits of the next tokens, ``[n, |V|]``.
            out: confidences, and -log sum exp for log p, ``[n, columns]``.
        """
        log_sum_exp = logits.float().logsumexp(-1, keepdim=True)
        if (column := self._log_p.get(model)) is not None:
            out[:, column] = -log_sum_exp[:, 0]
        confidences = [(c, of) for c, of in self._columns[model] if of is not None and wanted[c]]
        if confidences:
            parts = (torch.split(one, _DISTRIBUTIONS) for one in (logits, log_sum_exp, out))
            for part, subtrahend, values in zip(*parts, strict=True):
                log_p = part - subtrahend
                for column, confidence in confidences:
                    values[:, column] = confidence(log_p)

    def _write(
        self, values: Tensor, destinations: Destinations, lengths: Ints, known: Masks
    ) -> None:
        """Writes the statistics of tokens, by the lengths of the prefixes that they end."""
        if self._reports:
            table = np.where(known, destinations.table, _NEVER)
            deliver = partial(self._tables.write, destinations._replace(table=table), lengths)
            self._back.submit(values, deliver)


def _confidence(name: str) -> Confidence | None:
    """The function with the name of a confidence; None for no name, which is log p."""
    if not name:
        return None
    if name.startswith("top_"):
        return partial(_top, int(name.removeprefix("top_")))
    return {"self_certainty": _self_certainty, "negative_entropy": _negative_entropy}[name]


def _self_certainty(log_p: Tensor) -> Tensor:
    return -log_p.mean(-1) - math.log(log_p.shape[-1])


def _negative_entropy(log_p: Tensor) -> Tensor:
    entropies: Tensor = torch.special.entr(log_p.exp())
    return -entropies.sum(-1)


def _top(k: int, log_p: Tensor) -> Tensor:
    return -log_p.topk(k, dim=-1).values.mean(-1)
