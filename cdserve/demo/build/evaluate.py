"""What steering by the head gains: the ground-truth reward of each way to decode."""

import math
import random
from collections.abc import Sequence
from statistics import mean, stdev

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdserve.demo.reward import sentiment
from value_heads import ValueHead

from .rollouts import MAX_TOKENS, Rollout, sample

Numbers = dict[str, float]


def reward_of(response: list[int], tokenizer: PreTrainedTokenizerFast) -> float:
    """Return the ground-truth reward of a response."""
    return sentiment(tokenizer.decode(response, skip_special_tokens=True))


def summary(per_prompt: Sequence[float]) -> Numbers:
    """Return the mean with the half-width of its 95 % confidence interval over prompts."""
    half_width = 1.96 * stdev(per_prompt) / math.sqrt(len(per_prompt))
    return {"mean": mean(per_prompt), "ci95": half_width, "prompts": len(per_prompt)}


@torch.no_grad()
def value_at_end(head: ValueHead, rollouts: Sequence[Rollout]) -> list[float]:
    """Return the value of each rollout's whole response."""
    last = torch.stack([rollout.hidden[-1] for rollout in rollouts])
    return [float(value) for value in head(last)[:, 0]]


def best_by_value(head: ValueHead, rollouts: Sequence[Rollout], k: int) -> list[Rollout]:
    """Return the best of every k rollouts in a row."""
    values = value_at_end(head, rollouts)
    return [
        rollouts[max(range(start, start + k), key=values.__getitem__)]
        for start in range(0, len(rollouts), k)
    ]


def blockwise(
    model: LlamaForCausalLM,
    head: ValueHead,
    prompts: Sequence[list[int]],
    *,
    k: int,
    m: int,
    seed: int,
) -> list[list[int]]:
    """Decode by the best of k blocks of m tokens (arXiv 2310.17022, section 3.2).

    Returns:
        The responses, token ids.
    """
    eos = int(model.config.eos_token_id)
    seeds = random.Random(seed)
    responses: list[list[int]] = [[] for _ in prompts]
    for _ in range(math.ceil(MAX_TOKENS / m)):
        open_ = [i for i, response in enumerate(responses) if response[-1:] != [eos]]
        if not open_:
            break
        prefixes = [prompts[i] + responses[i] for i in open_ for _ in range(k)]
        blocks = sample(model, prefixes, max_tokens=m, seed=seeds.randrange(2**32))
        for i, block in zip(open_, best_by_value(head, blocks, k), strict=True):
            responses[i] += block.response
    return responses


def compare_decoders(
    model: LlamaForCausalLM,
    head: ValueHead,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    *,
    seed: int,
) -> dict[str, Numbers]:
    """Return the ground-truth reward of plain sampling, best-of-8 and blockwise K=4, M=32."""
    pool = sample(
        model, [prompt for prompt in prompts for _ in range(8)], max_tokens=MAX_TOKENS, seed=seed
    )
    rewards = [reward_of(rollout.response, tokenizer) for rollout in pool]
    chosen = best_by_value(head, pool, 8)
    steered = blockwise(model, head, prompts, k=4, m=32, seed=seed)
    return {
        "none": summary([mean(rewards[i : i + 8]) for i in range(0, len(rewards), 8)]),
        "best_of_8": summary([reward_of(rollout.response, tokenizer) for rollout in chosen]),
        "blockwise_k4_m32": summary([reward_of(response, tokenizer) for response in steered]),
    }


def mean_reward(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    *,
    seed: int,
) -> Numbers:
    """Return the ground-truth reward of plain sampling, one response a prompt."""
    rollouts = sample(model, prompts, max_tokens=MAX_TOKENS, seed=seed)
    return summary([reward_of(rollout.response, tokenizer) for rollout in rollouts])
