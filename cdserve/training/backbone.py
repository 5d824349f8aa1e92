"""The base model in Transformers: hidden states of responses, and the output layer."""

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
"""Number of responses that are sorted by length together, to reduce padding."""
_BATCH_TOKENS = 16384


def device() -> torch.device:
    """The device for states and fits: a GPU if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Backbone:
    """The frozen base model.

    Args:
        folder: folder of the model; its configuration sets the dtype.
    """

    def __init__(self, folder: Path) -> None:
        self._device = device()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self._model.eval().to(self._device)

    def base(self, temperature: float) -> Base:
        """The next-token distribution, for responses sampled at ``temperature``.

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
                "--model: the logits are not the output embedding times the last hidden state (a "
                "scale, a bias or a soft cap applies); use --method fudge, td or soft, and a head "
                "that is not tied"
            )
        return Base(lm_head=lm_head, temperature=temperature)

    def states(self, rollouts: Iterable[Rollout]) -> Iterator[tuple[Rollout, Tensor]]:
        """Each response with its hidden states [T + 1, d], the prompt's last state first."""
        stream = iter(rollouts)
        while window := list(islice(stream, _WINDOW)):
            yield from zip(window, self._window_states(window), strict=True)

    def _window_states(self, window: Sequence[Rollout]) -> list[Tensor]:
        by_index: dict[int, Tensor] = {}
        for batch in _batches([len(r.prompt_ids) + len(r.tokens) for r in window]):
            sequences = [torch.tensor(window[i].prompt_ids + window[i].tokens) for i in batch]
            # Attention is causal, so padding on the right does not change the states.
            ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
            with torch.no_grad():
                states = self._states(ids.to(self._device)).cpu()
            for i, row, sequence in zip(batch, states, sequences, strict=True):
                by_index[i] = row[len(window[i].prompt_ids) - 1 : len(sequence)].clone()
        return [by_index[i] for i in range(len(window))]

    def _states(self, ids: Tensor) -> Tensor:
        states: Tensor = self._model.base_model(ids, use_cache=False).last_hidden_state
        return states


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Batches of indices, sorted by length, of at most ``_BATCH_TOKENS`` padded tokens each."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
