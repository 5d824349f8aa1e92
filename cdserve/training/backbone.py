"""The base model in Transformers: states behind the tokens of responses, and its output layer."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cdserve.errors import ConfigError
from cdserve.training.rollouts import Rollout
from value_heads import Base

_WINDOW = 256
"""Responses sorted by length together, so that little is computed for padding."""
_BATCH_TOKENS = 16384


def device() -> torch.device:
    """Where states are computed and heads are fitted: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Backbone:
    """The base model, frozen.

    Args:
        folder: of the model; it is computed in the dtype that its configuration says.
    """

    def __init__(self, folder: Path) -> None:
        self._device = device()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self._model.eval().to(self._device)

    def base(self, temperature: float) -> Base:
        """The law of the next token, for responses sampled at ``temperature``.

        Raises:
            ConfigError: the model's logits are not its output embedding times its last state.
        """
        lm_head = self._model.get_output_embeddings().weight.detach().float()
        ids = torch.arange(min(16, len(lm_head)), device=self._device)[None]
        with torch.no_grad():
            logits = self._model(ids).logits.float()
            expected = self._states(ids).float() @ lm_head.T
        if not torch.allclose(logits, expected, rtol=0.02, atol=0.02 * float(logits.abs().max())):
            raise ConfigError(
                "--model: its logits are not its output embedding times the last state (they have "
                "a scale, a bias or a soft cap): use fudge, td or soft, and no tied head"
            )
        return Base(lm_head=lm_head, temperature=temperature)

    def states(self, rollouts: Iterable[Rollout]) -> Iterator[tuple[Rollout, Tensor]]:
        """Each response with its states [T + 1, d], that of the prompt first, in order."""
        stream = iter(rollouts)
        while window := list(islice(stream, _WINDOW)):
            yield from zip(window, self._of_window(window), strict=True)

    def _of_window(self, window: Sequence[Rollout]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for batch in _batches([len(one.prompt_ids) + len(one.tokens) for one in window]):
            sequences = [torch.tensor(window[i].prompt_ids + window[i].tokens) for i in batch]
            # Causal: what stands behind a sequence changes nothing in it.
            ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
            with torch.no_grad():
                states = self._states(ids.to(self._device)).cpu()
            for i, row, sequence in zip(batch, states, sequences, strict=True):
                found[i] = row[len(window[i].prompt_ids) - 1 : len(sequence)].clone()
        return [found[i] for i in range(len(window))]

    def _states(self, ids: Tensor) -> Tensor:
        states: Tensor = self._model.base_model(ids, use_cache=False).last_hidden_state
        return states


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of sequences of like length, at most ``_BATCH_TOKENS`` padded tokens together."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
