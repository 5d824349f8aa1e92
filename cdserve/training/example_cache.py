"""Fills a cache with the responses of a file, and with hidden states from the base model."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from cdserve.errors import ConfigError, safe_repr
from cdserve.prompts import encode, text_of
from cdserve.training.examples import Example, Examples
from cdserve.training.fill_cache import (
    FilledCache,
    check_settings,
    compute_states,
    digest,
    split,
)
from cdserve.training.job import DataFile
from cdserve.training.rollouts import Rollout, write
from value_heads import hash_base

_Group = Sequence[Example]
"""Responses to one prompt."""


def cache_examples(data: DataFile, examples: Examples, model: Path) -> FilledCache:
    """Tokenizes the responses and computes the states that the cache lacks.

    All responses to a prompt are in the same set. Each pair has its own prompt in the cache.

    Args:
        data: names the file and the cache.
        examples: content of the file.
        model: folder of the base model.

    Raises:
        ConfigError: the cache has other settings, or a response cannot be used.
    """
    sets = split(data, _by_prompt(examples), f"--data {data.path}")
    if examples.pairs:
        sets = {name: [*chain.from_iterable(map(_pairs, groups))] for name, groups in sets.items()}
    firsts = [group[0] for groups in sets.values() for group in groups]
    prompts = [example.prompt for example in firsts]
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = encode(prompts, tokenizer, [example.place for example in firsts])
    cache = FilledCache(
        folder=data.cache,
        prompts=prompts,
        texts=[text_of(prompt, tokenizer) for prompt in prompts],
        counts={name: sum(map(len, groups)) for name, groups in sets.items()},
        base_hash=hash_base(model),
        reward_names=examples.names,
        rewards={name: _rewards(groups, examples.names) for name, groups in sets.items()},
        pairs=examples.pairs,
    )
    tokenize = _Tokenizer(model, tokenizer)
    rollouts: dict[str, list[Rollout]] = {}
    number = 0
    for name, groups in sets.items():
        rollouts[name] = []
        for group in groups:
            rollouts[name] += [tokenize(example, number, ids[number]) for example in group]
            number += 1
    settings = {
        "base_hash": cache.base_hash,
        "data_sha256": digest(data.path),
        "held_out": data.held_out,
        "sample_seed": data.seed,
    }
    check_settings(data, settings)
    for name in sets:
        if not (path := data.cache / f"{name}-rollouts-00000.jsonl").exists():
            write(path, rollouts[name])
    compute_states(model, cache)
    return cache


def _by_prompt(examples: Examples) -> list[_Group]:
    groups: dict[str, list[Example]] = {}
    for example in examples.rows:
        groups.setdefault(json.dumps(example.prompt, sort_keys=True), []).append(example)
    return list(groups.values())


def _pairs(group: _Group) -> Iterator[_Group]:
    return (group[i : i + 2] for i in range(0, len(group), 2))


def _rewards(groups: Sequence[_Group], names: Sequence[str]) -> Tensor:
    rows = [[example.rewards[name] for name in names] for group in groups for example in group]
    return torch.tensor(rows).reshape(len(rows), len(names))


class _Tokenizer:
    """Makes rollouts of examples, with the tokens that the server would continue the prompt by."""

    def __init__(self, model: Path, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        config = AutoConfig.from_pretrained(model).get_text_config()
        self._limit = getattr(config, "max_position_embeddings", None)
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"--model {model}: its tokenizer has no end token")

    def __call__(self, example: Example, prompt: int, prompt_ids: list[int]) -> Rollout:
        tokens = self._tokenizer(example.response, add_special_tokens=False)["input_ids"]
        if example.ended:
            tokens = [*tokens, self._tokenizer.eos_token_id]
        if not tokens:
            raise ConfigError(f"{example.place} has an empty response that did not end")
        total = len(prompt_ids) + len(tokens)
        if self._limit is not None and total > self._limit:
            raise ConfigError(
                f"{example.place}: {safe_repr(example.response)} has {total} tokens with its "
                f"prompt; the model reads at most {self._limit}"
            )
        return Rollout(
            prompt=prompt,
            prompt_ids=prompt_ids,
            tokens=tokens,
            text=example.response,
            ended=example.ended,
        )
