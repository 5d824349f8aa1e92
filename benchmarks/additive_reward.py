"""A grammar without a latent: every sentence draws its sentiment, and the reward is additive.

A sentence has four tokens: an opening that names the sentiment s, which is -1, 0 or 1 with equal
chances; two phrases whose valences vary around s; and a full stop. Every token is one letter and
depends on the previous one only, so a table is the model. The reward of a text is the mean valence
of its phrases. V* is exact: the valences so far plus the expected rest of the last sentence.
"""

import math
import random
import zlib
from itertools import product

import torch
from torch import Tensor

SENTENCES, SENTENCE, PHRASES = 32, 4, 2
"""Sentences of an answer, tokens and phrases of a sentence."""
TOKENS = SENTENCES * SENTENCE
SENTIMENTS = VALENCES = (-1, 0, 1)
CHANCES = {-1: (0.6, 0.3, 0.1), 0: (0.2, 0.6, 0.2), 1: (0.1, 0.3, 0.6)}
"""Chances of the valences by sentiment."""
EXPECTED = 0.5
"""Expected valence of a phrase whose sentence has sentiment 1."""
STOP = ("stop", 0, 0)
STATES = [
    STOP,
    *(("opening", s, 0) for s in SENTIMENTS),
    *((phrase, s, v) for phrase, s, v in product(("first", "second"), SENTIMENTS, VALENCES)),
]
"""Part of the sentence, sentiment and valence of every token."""
FIRST_LETTER = ";"
"""Letter of the first state; the others follow in ASCII."""
ACCURACY = 0.7
"""Correlation of ``noisy_value`` and V* among blocks of ``NOISY_BLOCK`` tokens."""
NOISY_BLOCK = 32
SENTENCE_VARIANCE = PHRASES * 0.6 + PHRASES * (PHRASES - 1) * EXPECTED**2 * 2 / 3
"""Variance of the sum of a sentence's valences."""
NOISE = math.sqrt(NOISY_BLOCK / SENTENCE * SENTENCE_VARIANCE * (ACCURACY**-2 - 1))
"""Standard deviation of the noise, as a sum of valences."""


def table(never: float) -> Tensor:
    """Logits of the next token by the last, [S, S]; ``never`` for tokens that cannot follow."""
    logits = torch.full((len(STATES), len(STATES)), never)
    for i, (part, s, _) in enumerate(STATES):
        for j, (following, sentiment, v) in enumerate(STATES):
            match part, following:
                case "stop", "opening":
                    logits[i, j] = 0.0
                case ("opening", "first") | ("first", "second") if s == sentiment:
                    logits[i, j] = math.log(CHANCES[s][VALENCES.index(v)])
                case "second", "stop":
                    logits[i, j] = 0.0
    return logits


def reward(text: str) -> float:
    """Mean valence of the phrases of a finished text."""
    return sum(STATES[ord(letter) - ord(FIRST_LETTER)][2] for letter in text) / (
        SENTENCES * PHRASES
    )


def value(prompt: str, response: str) -> float:
    """V* of a prefix, as the expected mean valence of the finished text."""
    rest = 0.0
    if response:
        part, s, _ = STATES[ord(response[-1]) - ord(FIRST_LETTER)]
        rest = s * EXPECTED * {"opening": 2, "first": 1}.get(part, 0)
    return reward(response) + rest / (SENTENCES * PHRASES)


def noisy_value(prompt: str, response: str) -> float:
    """V* plus Gaussian noise, which depends on the text only, as the error of a value head does."""
    noise = random.Random(zlib.crc32(response.encode())).gauss(0, NOISE)
    return value(prompt, response) + noise / (SENTENCES * PHRASES)
