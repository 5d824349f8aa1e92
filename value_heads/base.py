"""The base model's next-token distribution, which some heads and methods need."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model's output layer.

    Attributes:
        lm_head: output embedding, float32 [|V|, d].
        temperature: temperature at which responses are sampled; positive.
    """

    lm_head: Tensor
    temperature: float = 1.0

    def log_p(self, states: Tensor) -> Tensor:
        """Return log p(.|s), float32 [n, |V|], of states [n, d]."""
        logits = states.float() @ self.lm_head.T
        return (logits / self.temperature).log_softmax(-1)
