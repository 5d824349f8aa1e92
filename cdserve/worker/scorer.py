"""Applies the value heads to hidden states and writes the values to shared tables."""

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

_TILE = 1024
"""Rows that a head outside the kernels scores at once, to bound its memory."""


class ValueScorer:
    """Scores rows with all value heads.

    Args:
        paths: folders of the heads, in the order of the table's columns.
        device: device of the model.
        fused: whether to use Triton kernels.
        back: copies values to the host.
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
        packable = [head for head in self._heads if PackedHeads.can_pack(head)]
        self._packed = PackedHeads.from_heads(packable) if self._kernels and packable else None
        self._tiled = [head for head in self._heads if not self._packed or head not in packable]

    def score_last(self, hidden: torch.Tensor, valued: ValueRows) -> None:
        """Scores the prefixes that this step's logits are conditioned on.

        Args:
            hidden: hidden states of the logits, ``[rows, d]``, in the order of the batch.
            valued: rows to score.
        """
        position = valued.tokens - valued.response_starts
        self._score(hidden, valued.index, valued.destinations, valued.tokens, position)

    def score_every(self, hidden: torch.Tensor, rows: PromptRows, starts: Ints) -> None:
        """Scores every prefix of prompts that this step computes.

        Args:
            hidden: hidden states of the step, ``[tokens, d]``.
            rows: rows to score.
            starts: offsets of the batch's rows in ``hidden``, and the end, ``[batch + 1]``.
        """
        counts = starts[rows.index + 1] - starts[rows.index]
        of_row = np.repeat(np.arange(len(counts)), counts)
        behind = np.arange(len(of_row)) - np.repeat(counts.cumsum(), counts)  # from -counts to -1
        ends = starts[rows.index + 1]
        destinations, lengths = rows.destinations.of(of_row), rows.tokens[of_row] + behind + 1
        position = lengths - rows.response_starts[of_row]
        self._score(hidden, ends[of_row] + behind, destinations, lengths, position)

    def _score(
        self,
        hidden: torch.Tensor,
        index: Ints,
        destinations: Destinations,
        lengths: Ints,
        position: Ints,
    ) -> None:
        """Scores rows of hidden states, and writes V of prefixes of ``lengths`` tokens.

        Args:
            position: number of response tokens in each prefix; below 0 inside the prompt.
        """
        rows, positions = to_device([index, position], np.int64, hidden.device)
        self._back.submit(
            self._values(hidden, rows, positions),
            partial(self._tables.write, destinations, lengths),
        )

    @torch.inference_mode()
    def warm_up(self, hidden: torch.Tensor) -> int:
        """Compiles the kernels that scoring launches, and allocates the memory of a tile.

        Args:
            hidden: as for ``score_last``, ``[rows, d]``: a view with members' states in between.
                They are contiguous where no member ran, and for whole prompts.

        Returns:
            Number of variants compiled; one for each memory layout of the hidden states.
        """
        for head in self._tiled:
            head(hidden.new_zeros(_TILE, hidden.shape[1]), hidden.new_zeros(_TILE).long())
        if self._packed is None:
            return 0
        strides = (hidden.shape[1], hidden.stride(0))
        # Triton specialises kernels on divisibility by 16.
        kinds = {stride % 16 == 0: stride for stride in strides}
        for stride in kinds.values():
            first = torch.zeros(1, dtype=torch.long, device=hidden.device)
            self._values(hidden.new_zeros(1, stride)[:, : hidden.shape[1]], first, first)
        return len(kinds)

    @torch.inference_mode()
    def _values(
        self, hidden: torch.Tensor, rows: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Values ``[N, G]``, float32, of rows ``[N]`` of hidden states ``[rows, d]``.

        Rows are passed by index: a slice may start at an address that needs another variant.
        """
        packed = iter(self._packed_values(hidden, rows))
        columns = [
            _in_tiles(head, hidden, rows, position) if head in self._tiled else next(packed)
            for head in self._heads
        ]
        return torch.cat(columns, dim=-1)

    def _packed_values(self, hidden: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        """Values ``[N, G]`` of each head that the kernels score."""
        if self._kernels is None or self._packed is None:
            return []
        values, _ = self._kernels.score(hidden, rows, self._packed)
        widths = [len(head.config.rewards) for head in self._heads if head not in self._tiled]
        return list(torch.split(values, widths, dim=-1))


def _in_tiles(
    head: ValueHead, hidden: torch.Tensor, rows: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    tiles = zip(torch.split(rows, _TILE), torch.split(position, _TILE), strict=True)
    return torch.cat([head(hidden[tile], at) for tile, at in tiles])
