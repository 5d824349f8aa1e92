"""The value heads inside the worker: hidden states in, values out, straight into the table."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from vllm.utils.torch_utils import set_default_torch_dtype

from cdserve.worker.inputs import to_device
from cdserve.worker.readback import READ_BACK, ReadBack
from cdserve.worker.rows import PromptRows, ValueRows
from cdserve.worker.tables import Tables
from cdserve.worker.tickets import Destinations, Ints
from value_heads import ValueHead
from value_heads.kernels import PackedHeads, operations


class ValueScorer:
    """All heads of the server, applied to the rows that ask.

    Args:
        paths: the heads' folders, in the order of the table's columns.
        device: where the model runs.
        fused: whether by Triton kernels.
        back: takes values to the host.
    """

    def __init__(
        self,
        paths: Sequence[str],
        device: torch.device,
        fused: bool = False,
        back: ReadBack = READ_BACK,
    ) -> None:
        with set_default_torch_dtype(torch.float32):  # vLLM builds models in the served dtype
            self._heads = [ValueHead.from_pretrained(path).to(device) for path in paths]
        self._tables = Tables(sum(len(head.config.rewards) for head in self._heads))
        self._back = back
        self._kernels = operations(fused=True) if fused else None
        packable = [head for head in self._heads if PackedHeads.packs(head)]
        self._packed = PackedHeads.of(packable) if self._kernels and packable else None

    def score_last(self, hidden: torch.Tensor, valued: ValueRows) -> None:
        """Scores the prefixes behind this step's logits.

        Args:
            hidden: what the logits are computed from, ``[rows, d]``, in batch order.
            valued: the rows to score.
        """
        self._score(hidden, valued.index, valued.destinations, valued.tokens)

    def score_every(self, hidden: torch.Tensor, rows: PromptRows, starts: Ints) -> None:
        """Scores every prefix of the prompts that ask for it, as far as the step computes them.

        Args:
            hidden: the step's hidden states, ``[tokens, d]``.
            rows: those that ask.
            starts: where each row of the batch begins in them, and where the last row ends.
        """
        counts = starts[rows.index + 1] - starts[rows.index]
        of_row = np.repeat(np.arange(len(counts)), counts)
        behind = np.arange(len(of_row)) - np.repeat(counts.cumsum(), counts)  # from -counts to -1
        ends = starts[rows.index + 1]
        destinations, lengths = rows.destinations.of(of_row), rows.tokens[of_row] + behind + 1
        self._score(hidden, ends[of_row] + behind, destinations, lengths)

    def _score(
        self, hidden: torch.Tensor, index: Ints, destinations: Destinations, lengths: Ints
    ) -> None:
        """Scores rows of hidden states, and writes V of prefixes of ``lengths`` tokens."""
        (rows,) = to_device([index], np.int64, hidden.device)
        self._back.submit(
            self._values(hidden, rows), partial(self._tables.write, destinations, lengths)
        )

    def warm_up(self, hidden: torch.Tensor) -> int:
        """Has Triton compile what scoring will launch; how many kinds of hidden states there are.

        Args:
            hidden: as ``score_last`` has them, ``[rows, d]``, with members' behind each. Where no
                member ran and over whole prompts they are in one piece.
        """
        if self._packed is None:
            return 0
        strides = (hidden.shape[1], hidden.stride(0))
        kinds = {stride % 16 == 0: stride for stride in strides}  # as Triton has them
        for stride in kinds.values():
            first = torch.zeros(1, dtype=torch.long, device=hidden.device)
            self._values(hidden.new_zeros(1, stride)[:, : hidden.shape[1]], first)
        return len(kinds)

    @torch.inference_mode()
    def _values(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Values ``[N, G]``, float32, of rows ``[N]`` of hidden states ``[rows, d]``.

        A slice of the states would begin at an address that may need another variant.
        """
        if self._kernels is None or self._packed is None:
            chosen = hidden[rows]
            return torch.cat([head(chosen) for head in self._heads], dim=-1)
        packed, _ = self._kernels.score(hidden, rows, self._packed)
        parts, column = [], 0
        for head in self._heads:
            if PackedHeads.packs(head):
                start, column = column, column + len(head.config.rewards)
                parts.append(packed[:, start:column])
            else:
                parts.append(head(hidden[rows]))
        return torch.cat(parts, dim=-1)
