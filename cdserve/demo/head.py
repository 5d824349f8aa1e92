"""The `sentiment` value head: Monte Carlo values on rollouts of the base model (CD-FUDGE)."""

import random
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from value_heads import (
    Examples,
    FitOptions,
    FitReport,
    HeadConfig,
    ValueHead,
    correlation,
    correlation_by_bucket,
    fit,
    hash_base,
    monte_carlo,
)

from .corpus import draw_prompt
from .reward import sentiment
from .rollouts import Rollout, sample

MAX_TOKENS = 224
POSITIONS = (1, 8, 16, 32, 48, 64, 96, MAX_TOKENS + 1)  # a token's number in the response
FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # the part of the response that has been read


def reward_of(response: list[int], tokenizer: PreTrainedTokenizerFast) -> float:
    """Return the ground-truth reward of a response."""
    return sentiment(tokenizer.decode(response, skip_special_tokens=True))


def draw_rollouts(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    *,
    held_out: bool,
    seed: int,
) -> list[Rollout]:
    """Sample the base model on prompts of one side of the split; keep what came to its end.

    A response cut at the length limit has no reward yet, so it is no training example.
    """
    rng = random.Random(seed)
    prompts = [tokenizer.encode(draw_prompt(rng, held_out=held_out).text) for _ in range(count)]
    rollouts = sample(model, prompts, max_tokens=MAX_TOKENS, seed=seed)
    return [rollout for rollout in rollouts if rollout.finished]


def examples(rollouts: list[Rollout], rewards: Tensor) -> Examples:
    """Return the states and Monte Carlo targets at every response token of the rollouts."""
    hidden = pad_sequence([rollout.hidden for rollout in rollouts], batch_first=True)
    lengths = torch.tensor([len(rollout.response) for rollout in rollouts])
    mask = torch.arange(hidden.shape[1])[None, :] < lengths[:, None]
    return Examples(hidden=hidden, targets=monte_carlo(rewards[:, None], mask), mask=mask)


def train_head(
    base_dir: Path,
    rollouts: list[Rollout],
    tokenizer: PreTrainedTokenizerFast,
    options: FitOptions,
) -> tuple[ValueHead, FitReport]:
    """Fit the head on rollouts of the base model; a tenth of them decides when to stop."""
    rewards = torch.tensor([reward_of(rollout.response, tokenizer) for rollout in rollouts])
    stop = max(1, len(rollouts) // 10)
    torch.manual_seed(options.seed)
    width = rollouts[0].hidden.shape[1]
    head = ValueHead(
        HeadConfig(
            architecture="mlp",
            rewards=("sentiment",),
            hidden_size=width,
            mlp_width=width,
            shift=(float(rewards.mean()),),
            scale=(float(rewards.std()),),
            base_model="cdserve-demo",
            base_hash=hash_base(base_dir),
        )
    )
    report = fit(
        head,
        examples(rollouts[stop:], rewards[stop:]),
        examples(rollouts[:stop], rewards[:stop]),
        options,
    )
    return head, report


@torch.no_grad()
def correlations(
    head: ValueHead, rollouts: list[Rollout], tokenizer: PreTrainedTokenizerFast
) -> dict[str, object]:
    """Return how well values predict the final reward, by how much of the response is read."""
    rewards = torch.tensor([reward_of(rollout.response, tokenizer) for rollout in rollouts])
    lengths = torch.tensor([len(rollout.response) for rollout in rollouts])
    values = head(torch.cat([rollout.hidden for rollout in rollouts]))[:, 0]
    each = rewards.repeat_interleave(lengths)
    number = torch.cat([torch.arange(1, int(length) + 1) for length in lengths])
    fraction = (number - 1) / lengths.repeat_interleave(lengths)
    by_number = correlation_by_bucket(values, each, number, POSITIONS)
    by_fraction = correlation_by_bucket(values, each, fraction, FRACTIONS)
    last = lengths.cumsum(0) - 1
    return {
        "rollouts": len(rollouts),
        "reward_mean": float(rewards.mean()),
        "reward_sd": float(rewards.std()),
        "at_end": correlation(values[last], rewards),
        "by_position": {
            f"{low}-{high - 1}": found
            for (low, high), found in zip(pairwise(POSITIONS), by_number, strict=True)
        },
        "by_fraction": {
            f"{low:.1f}-{high:.1f}": found
            for (low, high), found in zip(pairwise(FRACTIONS), by_fraction, strict=True)
        },
    }
