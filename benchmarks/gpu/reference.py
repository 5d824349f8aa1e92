"""What the demo's answers are held against: Transformers in float32 on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, REF_DIR, TUNED_DIR
from cdserve.demo.tiny.build.folders import load_model, load_tokenizer
from value_heads import QHead, ValueHead, centred_on_top_k, kl

from .served import DPO_BETA

_MODELS = {"base": MODEL_DIR, "tuned": TUNED_DIR, "ref": REF_DIR}


@dataclass(frozen=True, slots=True)
class Steering:
    """How a policy changes the next token's logits z to sum_i w_i z_i + Q / beta."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"base": 1.0})
    beta: float | None = None
    top_k: int | None = None
    budget: float | None = None
    """Nats of KL: a token that would pass it is drawn from the base model."""


class Path(NamedTuple):
    """Of a response of T tokens."""

    logits: Tensor
    """Those that its tokens were drawn from, ``[T, |V|]``."""
    kl: float
    """Between their distributions and the base model's, summed, in nats."""


class Reference:
    """The demo's models and heads."""

    def __init__(self) -> None:
        self._models = {name: load_model(folder) for name, folder in _MODELS.items()}
        self._values = ValueHead.from_pretrained(HEAD_DIR)
        self._next_values = QHead.from_pretrained(Q_HEAD_DIR)

    @cached_property
    def tokenizer(self) -> Any:
        """The demo's."""
        return load_tokenizer(MODEL_DIR)

    @torch.inference_mode()
    def values(self, token_ids: Sequence[int]) -> list[float]:
        """V after each token."""
        values: list[float] = self._values(self._hidden(token_ids))[:, 0].tolist()
        return values

    def rewards(self, prompt: Sequence[int], response: Sequence[int]) -> dict[str, float]:
        """A whole response's rewards, as the server names them."""
        log_p = {name: self._log_likelihood(name, prompt, response) for name in _MODELS}
        return {
            "sentiment": self.values([*prompt, *response])[-1],
            "fluent": log_p["base"],
            "dpo": DPO_BETA * (log_p["tuned"] - log_p["ref"]),
        }

    @torch.inference_mode()
    def _log_likelihood(self, model: str, prompt: Sequence[int], response: Sequence[int]) -> float:
        ids = torch.tensor([[*prompt, *response]])
        log_p = self._models[model](input_ids=ids).logits[0, :-1].log_softmax(-1)
        return float(log_p.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())

    @torch.inference_mode()
    def path(
        self, prompt: Sequence[int], response: Sequence[int], by: Steering, temperature: float
    ) -> Path:
        """What a response's tokens were drawn from."""
        ids = [*prompt, *response][:-1]
        base, steered = self.logits(ids, by)
        base, steered = base[len(prompt) - 1 :], steered[len(prompt) - 1 :]
        nats = kl(base, steered, torch.full((len(base),), temperature or 1.0)).tolist()
        spent = 0.0
        for i, step in enumerate(nats):
            if by.budget is not None and spent + step > by.budget:
                steered[i] = base[i]
            else:
                spent += step
        return Path(steered, spent)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], by: Steering) -> tuple[Tensor, Tensor]:
        """The base model's behind each token, and the steered ones, ``[T, |V|]``."""
        ids = torch.tensor([token_ids])
        logits = {name: self._models[name](input_ids=ids).logits[0] for name in by.weights}
        base = logits.get("base", self._models["base"](input_ids=ids).logits[0])
        steered = torch.stack([w * logits[name] for name, w in by.weights.items()]).sum(0)
        if by.beta is not None:
            delta = self._next_values(self._hidden(token_ids))[:, 0] / by.beta
            if by.top_k is not None:
                delta = centred_on_top_k(delta, steered, torch.full((len(delta),), by.top_k))
            steered = steered + delta
        return base, steered

    def _hidden(self, token_ids: Sequence[int]) -> Tensor:
        """The base model's states, ``[T, d]``."""
        hidden: Tensor = self._models["base"].model(torch.tensor([token_ids])).last_hidden_state[0]
        return hidden
