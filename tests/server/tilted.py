"""What token-wise answers of the demo are held against: Transformers, float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cdserve.demo.tiny import MODEL_DIR, Q_HEAD_DIR
from cdserve.demo.tiny.build.folders import load_model
from value_heads import QHead, centred_on_top_k

BETA = 0.1
TOKENWISE = {"method": "tokenwise_cd", "beta": BETA}


class Tilted:
    """The demo model and a Q-head in Transformers, float32."""

    def __init__(self, head: Path = Q_HEAD_DIR) -> None:
        self._model = load_model(MODEL_DIR)
        self._head = QHead.from_pretrained(head)

    @torch.inference_mode()
    def logits(
        self,
        token_ids: Sequence[int],
        beta: float,
        top_k: int | None = None,
        prompt_length: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The base model's logits behind every prefix, and the tilted ones, ``[T, |V|]``.

        The prompt's length matters to a head that reads the position.
        """
        hidden = self._model.model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
        base = self._model.lm_head(hidden)
        position = torch.arange(1, len(token_ids) + 1) - prompt_length
        delta = self._head(hidden, None, position)[:, 0] / beta
        if top_k is not None:
            delta = centred_on_top_k(delta, base, torch.full((len(base),), top_k))
        return base, base + delta


def check_tilted(
    reference: Tilted,
    choice: Any,
    report: dict[str, Any],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> None:
    """Asserts logprobs and KL of a choice under TOKENWISE against the reference."""
    whole = [*choice.prompt_token_ids, *choice.token_ids]
    start = len(choice.prompt_token_ids) - 1
    base, tilted = reference.logits(whole[:-1], BETA, top_k, start + 1)
    log_p, log_pi = ((z[start:] / temperature).log_softmax(-1) for z in (base, tilted))
    taken = tilted[start:].log_softmax(-1)[range(len(choice.token_ids)), choice.token_ids]
    assert choice.logprobs.token_logprobs == pytest.approx(taken.tolist(), abs=2e-3)
    exact = (log_pi.exp() * (log_pi - log_p)).sum().item()
    assert report["kl"]["estimate"] == pytest.approx(exact, rel=1e-3, abs=1e-4)
