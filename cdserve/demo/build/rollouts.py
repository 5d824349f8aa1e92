"""Batched sampling with a KV cache that keeps the hidden state behind every token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, LlamaForCausalLM

MAX_TOKENS = 224
BATCH = 256
COMPACT_EVERY = 8  # steps between two removals of finished rows from the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A sampled continuation.

    Attributes:
        prompt: token ids before it.
        response: sampled token ids, the end token included where it was sampled.
        hidden: float32 [len(response), d]; row t is the final hidden state, after the final norm,
            once response[t] has been fed, so it sees the prefix up to and including that token.
        start: float32 [d]; the same of the prompt alone.
        finished: whether the response ends with the end token.
    """

    prompt: list[int]
    response: list[int]
    hidden: torch.Tensor
    start: torch.Tensor
    finished: bool


@torch.inference_mode()
def _sample_batch(
    model: LlamaForCausalLM,
    prompts: Sequence[list[int]],
    max_tokens: int,
    generator: torch.Generator,
) -> list[Rollout]:
    eos = int(model.config.eos_token_id)
    last_token = int(model.config.vocab_size) - 1  # where rounding leaves the sum below 1
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()

    tokens = torch.zeros(len(prompts), max_tokens, dtype=torch.long)
    states = torch.zeros(len(prompts), max_tokens + 1, model.config.hidden_size)
    lengths = torch.zeros(len(prompts), dtype=torch.long)
    rows = torch.arange(len(prompts))  # the prompts still in the batch
    ended = torch.zeros(len(prompts), dtype=torch.bool)  # of those rows, which sampled the end
    for step in range(max_tokens + 1):
        hidden = model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).last_hidden_state[:, -1]
        states[rows, step] = hidden
        if step == max_tokens or bool(ended.all()):
            break
        uniform = torch.rand(len(rows), 1, generator=generator)
        probabilities = model.lm_head(hidden).softmax(-1)
        ids = torch.searchsorted(probabilities.cumsum(-1), uniform).clamp(max=last_token)
        tokens[rows, step] = ids[:, 0]
        lengths[rows[~ended]] = step + 1
        positions = mask.sum(1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        if step % COMPACT_EVERY == 0 and bool(ended.any()):
            keep = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
            rows, ended = rows[keep], ended[keep]
        ended = ended | (ids[:, 0] == eos)
    responses = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    return [
        Rollout(
            prompt=list(prompt),
            response=response,
            hidden=state[1 : len(response) + 1].clone(),
            start=state[0].clone(),
            finished=response[-1] == eos,
        )
        for prompt, response, state in zip(prompts, responses, states, strict=True)
    ]


def sample(
    model: LlamaForCausalLM, prompts: Sequence[list[int]], *, max_tokens: int, seed: int
) -> list[Rollout]:
    """Sample one continuation of every prompt at temperature 1, in the order of the prompts."""
    generator = torch.Generator().manual_seed(seed)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rollouts: dict[int, Rollout] = {}
    for start in range(0, len(prompts), BATCH):
        chosen = by_length[start : start + BATCH]
        batch = _sample_batch(model, [prompts[index] for index in chosen], max_tokens, generator)
        rollouts.update(zip(chosen, batch, strict=True))
    return [rollouts[index] for index in range(len(prompts))]
