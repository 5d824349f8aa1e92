"""A language model in closed form: every probability, value and KL can be enumerated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FLOOR = -60.0
"""log p of tokens outside the model's vocabulary, in nats; they are never drawn."""
_MEAN_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """A model with the same next-token distribution after every prefix.

    An engine numbers its models from 0, the base model, and the outputs of its heads from 0.
    Number ``i`` has the probabilities or the rewards of all tokens but the last moved by ``i``.

    Attributes:
        tokens: token ids; the last one ends a response.
        probabilities: of each token, above 0; the sum is 1.
        rewards: what each token adds to the reward of a response.
    """

    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    rewards: tuple[float, ...]

    @classmethod
    def of(cls, token_ids: Sequence[int], end: int) -> "TinyModel":
        """A model of these tokens and ``end`` that draws 64 tokens per response on average."""
        weights = np.array([1 / (2 + i) for i in range(len(token_ids))])
        p = (1 - 1 / _MEAN_LENGTH) * weights / weights.sum()
        # Incommensurable: texts with different counts of tokens have different rewards. Their mean
        # is negative, so that searches for a high value do not avoid the end.
        rewards = 0.1 * np.sin(1 + 2 * np.arange(len(token_ids)))
        rewards -= p @ rewards / p.sum() + 0.01
        return cls(
            tokens=(*token_ids, end),
            probabilities=(*p.tolist(), 1 / _MEAN_LENGTH),
            rewards=(*rewards.tolist(), 0.0),
        )

    def log_p(self, model: int = 0) -> Floats:
        """log p of each of ``tokens``, in nats, ``[n]``."""
        return np.log(_moved(self.probabilities, model))

    def log_p_of(self, token_ids: Sequence[int], model: int = 0) -> list[float]:
        """log p of each given token, in nats."""
        known = dict(zip(self.tokens, self.log_p(model).tolist(), strict=True))
        return [known.get(token, FLOOR) for token in token_ids]

    def value(
        self, token_ids: Sequence[int], output: int = 0, tokens_left: int | None = None
    ) -> float:
        """V of a prefix: the expected reward of the whole text.

        Args:
            output: number of the head output.
            tokens_left: tokens that may still be drawn; None for no limit.
        """
        rewards = _moved(self.rewards, output)
        known = dict(zip(self.tokens, rewards, strict=True))
        written = math.fsum(known.get(token, 0.0) for token in token_ids)
        if token_ids and token_ids[-1] == self.tokens[-1]:
            return written
        end = self.probabilities[-1]
        steps = 1 / end if tokens_left is None else (1 - (1 - end) ** tokens_left) / end
        return written + steps * float(np.dot(self.probabilities, rewards))

    def q(self, token_ids: Sequence[int], output: int = 0) -> Floats:
        """Q of each of ``tokens``: V of the prefix with that token, ``[n]``."""
        return np.array([self.value([*token_ids, token], output) for token in self.tokens])


def mixed(models: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Logits of the product of p_i^w_i."""
    logits: Floats = np.array(weights) @ np.array(models)
    return logits


def tilted(logits: Floats, delta: Floats, top_k: int | None) -> Floats:
    """Logits plus ``delta``, which is centred on the ``top_k`` most likely tokens if given."""
    if not top_k:
        return logits + delta
    top = np.argsort(-logits, kind="stable")[:top_k]
    logits = logits.copy()
    logits[top] += delta[top] - delta[top].mean()
    return logits


def log_softmax(logits: Floats) -> Floats:
    """Logits less their log-sum-exp."""
    shifted = logits - logits.max()
    log_p: Floats = shifted - math.log(np.exp(shifted).sum())
    return log_p


def kl(log_p: Floats, log_q: Floats) -> float:
    """KL(p || q), in nats."""
    return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def _moved(numbers: Sequence[float], places: int) -> list[float]:
    *front, last = numbers
    places %= max(1, len(front))
    return [*front[places:], *front[:places], last]
