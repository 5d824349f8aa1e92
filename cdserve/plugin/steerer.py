"""Steering inside the worker: a step's logits in, those of the steered rows changed in place."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm.utils.torch_utils import set_default_torch_dtype

from cdserve.plugin.inputs import MemberLogits, Rows, factors, index, places, tensor
from cdserve.plugin.launches import Launches, kind
from cdserve.plugin.readback import READ_BACK, ReadBack
from cdserve.plugin.rows import Row
from cdserve.plugin.tables import Tables
from cdserve.value_table import Ticket
from value_heads import QHead, centred_on_top_k, kl, mixed
from value_heads.kernels import ROW_TILES


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
        fused: whether by Triton kernels.
        members: the members' names.
        back: takes the KL to the host.

    Raises:
        ValueError: a head has values of more tokens than that.
    """

    def __init__(
        self,
        paths: Sequence[str],
        device: torch.device,
        vocabulary: int,
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
        self._tables = Tables(columns=2)
        self._back = back
        self._launches = Launches(self._heads, members) if fused else None

    @torch.inference_mode()
    def steer(
        self,
        logits: Tensor,
        hidden: Tensor,
        rows: Mapping[int, Row],
        members: MemberLogits,
        lm_head: Tensor | None,
    ) -> Tensor:
        """The step's logits with those of ``rows`` steered, in float32.

        Args:
            logits: ``[batch, |V|]``; rows that are not named stay as they are.
            hidden: the base's hidden states behind them, ``[batch, d]``.
            members: gives members' logits ``[N, |V|]`` of N rows of the batch, by name.
            lm_head: the model's output embedding, which tied heads read.
        """
        if self._launches is not None:
            return self._steer_fused(self._launches, logits, hidden, rows, members, lm_head)
        logits = logits.float()
        asking = list(rows.values())
        at = places(list(rows), logits.device)
        before = logits[at]
        after = self._mixed(before, list(rows), asking, members)
        after = self._tilted(after, hidden[at], asking, lm_head)
        after = self._within_budgets(asking, before, after)
        logits[at] = after
        return logits

    @torch.inference_mode()
    def warm_up(
        self, logits: Tensor, hidden: Tensor, members: MemberLogits, lm_head: Tensor | None
    ) -> int:
        """Has Triton compile what steering will launch; how many kinds of rows there are.

        Args:
            logits: as ``steer`` has them, of the largest batch; they stay as they are.
            hidden, members, lm_head: as ``steer``'s.
        """
        if self._launches is None:
            return 0
        # Another worker reports the KL: then this one knows it only where there is a budget.
        measured = (True,) if self._reports else (True, False)
        some = slice(ROW_TILES[-1])
        wide = logits[some].float()
        return self._launches.warm_up(wide, hidden[some], members, lm_head, measured)

    def _steer_fused(
        self,
        launches: Launches,
        logits: Tensor,
        hidden: Tensor,
        rows: Mapping[int, Row],
        members: MemberLogits,
        lm_head: Tensor | None,
    ) -> Tensor:
        """As ``steer``: a launch for each kind of row, in place.

        A budget is kept on the host, which sees the KL when the logits are steered already; so rows
        with one are copied before, and put back where it is spent.
        """
        steered = logits.float()
        order = sorted(rows, key=lambda i: kind(rows[i]))
        asking = [rows[i] for i in order]
        every = index(order, logits.device)
        measured = self._measures(asking)
        bounded = [i for i, row in enumerate(asking) if measured and row.budget is not None]
        kept = steered[[order[i] for i in bounded]] if bounded else steered[:0]
        mixing = [i for i in order if rows[i].mix]
        behind = members(places(mixing, logits.device)) if mixing else {}
        parts: list[Tensor] = []
        stop = 0
        for _, group in groupby(asking, kind):
            some = list(group)
            start, stop = stop, stop + len(some)
            place = every[start:stop]
            part = {name: z[start:stop] for name, z in behind.items()}
            found = launches.steer(steered, place, some, hidden[place], part, lm_head, measured)
            if found is not None:
                parts.append(found.kl)
        if measured:
            spent = self._charge(asking, torch.cat(parts))
            if spent:
                back = [bounded.index(i) for i in spent]
                steered[[order[i] for i in spent]] = kept[back]
        return steered

    def _mixed(
        self,
        logits: Tensor,
        indices: Sequence[int],
        rows: Sequence[Row],
        members: MemberLogits,
    ) -> Tensor:
        chosen = [i for i, row in enumerate(rows) if row.mix]
        if not chosen:
            return logits
        place = places(chosen, logits.device)
        behind = members(places([indices[i] for i in chosen], logits.device))
        part = mixed(logits[place], behind, [rows[i].mix or {} for i in chosen])
        return _put(part, logits, place, len(chosen))

    def _tilted(
        self, logits: Tensor, hidden: Tensor, rows: Sequence[Row], lm_head: Tensor | None
    ) -> Tensor:
        chosen = [i for i, row in enumerate(rows) if row.tilt is not None]
        if not chosen:
            return logits
        place = places(chosen, logits.device)
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
        for head, u in factors(self._heads, hidden, rows):
            tokens = head.matrix(lm_head)
            part = u.flatten(1) @ tokens.transpose(1, 2).flatten(0, 1)
            total = part if total is None else total.add_(part)
        assert total is not None  # a tilted row names a column
        return total

    def _limited(self, delta: Tensor, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """The tilt, in rows with a ``top_k`` about its mean over the k most likely tokens there."""
        limited = [i for i, row in enumerate(rows) if row.tilt is not None and row.tilt.top_k]
        if limited:
            at = index(limited, delta.device)
            vocabulary = delta.shape[1]
            top_k = [min(tilt.top_k or 0, vocabulary) for i in limited if (tilt := rows[i].tilt)]
            delta[at] = centred_on_top_k(delta[at], logits[at], index(top_k, delta.device))
        return delta

    def _within_budgets(self, rows: Sequence[Row], before: Tensor, after: Tensor) -> Tensor:
        """The steered logits, those before where a row's budget is spent; writes the KL."""
        if not self._measures(rows):
            return after
        spent = self._charge(rows, kl(before, after, _temperature(rows, before.device)))
        if spent:
            after = after.clone()
            after[spent] = before[spent]
        return after

    def _measures(self, rows: Sequence[Row]) -> bool:
        """Whether anything asks for the step's KL here."""
        told = any(row.path is not None for row in rows)
        return told and (self._reports or any(row.budget is not None for row in rows))

    def _charge(self, rows: Sequence[Row], nats: Tensor) -> list[int]:
        """Adds the step's KL to the rows' paths; which rows cannot afford it.

        Only a step of rows with budgets waits for it.
        """
        at = [row.tokens for row in rows]
        if all(row.budget is None for row in rows):
            self._back.put(nats, partial(self._charged, rows, at))
            return []
        self._back.hand_over(self._back.count)
        return self._charged(rows, at, nats.cpu().numpy())

    def _charged(
        self, rows: Sequence[Row], at: Sequence[int], nats: npt.NDArray[np.float32]
    ) -> list[int]:
        """As ``_charge``, of rows whose prefixes had so many tokens; writes their paths."""
        spent, told = [], []
        for i, (row, tokens, step) in enumerate(zip(rows, at, nats.tolist(), strict=True)):
            if row.path is None:
                continue
            told.append((row.path, tokens + 1, row))
            self._resume(row, row.path, tokens)
            if not row.affords(tokens, step):
                spent.append(i)
        if self._reports:
            paths = np.array([row.path_so_far for _, _, row in told], np.float32)
            self._tables.write([path for path, _, _ in told], [n for _, n, _ in told], paths)
        return spent

    def _resume(self, row: Row, path: Ticket, tokens: int) -> None:
        """Tells a row, if its request was preempted, what its path was before."""
        if row.at < 0 and tokens > row.prompt_length:
            found = self._tables.read(path, tokens)
            row.spent, row.unsteered = 0.0, 0
            if found is not None:
                row.spent, row.unsteered = float(found[0]), int(found[1])


def _temperature(rows: Sequence[Row], device: torch.device) -> Tensor | None:
    """The rows' temperatures ``[N]``; None where each counts as 1."""
    temperatures = [row.temperature for row in rows]
    plain = all(t in (0.0, 1.0) for t in temperatures)
    return None if plain else tensor(temperatures, device)


def _put(part: Tensor, whole: Tensor, place: Rows, count: int) -> Tensor:
    """``whole`` with ``part`` in these rows, ``whole`` itself left alone."""
    if count == len(whole):
        return part
    copy = whole.clone()
    copy[place] = part
    return copy
