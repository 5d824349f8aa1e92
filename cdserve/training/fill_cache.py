"""Fills a cache with responses from the engine and hidden states from the base model."""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from cdserve.errors import ConfigError
from cdserve.prompts import Prompt, encode, read_prompts, text_of
from cdserve.training.backbone import Backbone
from cdserve.training.cache import SETTINGS
from cdserve.training.job import Data
from cdserve.training.rollouts import RolloutSampling, Sampler, read
from value_heads import ShardWriter, hash_base

MOST_HELD_OUT = 1000
"""Maximum number of prompts in the validation set and in the test set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledCache:
    """A cache with all responses and states.

    Attributes:
        folder: folder of the cache.
        prompts: all prompts; the index is ``Rollout.prompt``.
        texts: text of every prompt as rewards receive it.
        sets: indices of the prompts of ``train``, ``validation`` and ``test``.
        base_hash: hash of the base model.
    """

    folder: Path
    prompts: list[Prompt]
    texts: list[str]
    sets: Mapping[str, list[int]]
    base_hash: str


def fill_cache(data: Data, model: Path) -> FilledCache:
    """Draws the responses and computes the states that the cache lacks.

    Args:
        data: the responses.
        model: folder of the base model.

    Raises:
        ConfigError: the cache has other settings, or the prompts cannot be used.
    """
    prompts, sets = _split(data)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = encode(prompts, tokenizer)
    cache = FilledCache(
        folder=data.cache,
        prompts=prompts,
        texts=[text_of(prompt, tokenizer) for prompt in prompts],
        sets=sets,
        base_hash=hash_base(model),
    )
    _check_settings(data, cache)
    _draw(data, model, cache, ids)
    _compute_states(data, model, cache)
    return cache


def _split(data: Data) -> tuple[list[Prompt], dict[str, list[int]]]:
    prompts = read_prompts(data.prompts)
    order = list(range(len(prompts)))
    random.Random(data.seed).shuffle(order)
    count = min(max(1, round(data.held_out * len(order))), MOST_HELD_OUT)
    if len(order) < 3 * count:
        raise ConfigError(
            f"--prompts {data.prompts} has {len(order)} prompts; at least 3 are required"
        )
    validation, rest = order[:count], order[count:]
    if data.test_prompts is None:
        return prompts, {"test": rest[:count], "validation": validation, "train": rest[count:]}
    others = read_prompts(data.test_prompts)
    test = list(range(len(prompts), len(prompts) + len(others)))
    return prompts + others, {"test": test, "validation": validation, "train": rest}


def _check_settings(data: Data, cache: FilledCache) -> None:
    """Checks the settings of an existing cache; writes them for a new one."""
    settings = {
        "base_hash": cache.base_hash,
        "prompts_sha256": _digest(data.prompts),
        "test_prompts_sha256": data.test_prompts and _digest(data.test_prompts),
        "held_out": data.held_out,
        "per_prompt": data.per_prompt,
        "max_tokens": data.max_tokens,
        "temperature": data.temperature,
        "sample_seed": data.seed,
    }
    path = data.cache / SETTINGS
    if not path.exists():
        data.cache.mkdir(parents=True, exist_ok=True)
        content = {"model": data.model, **settings}  # the name is for readers; the hash identifies
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if kept.get(key) != value:
            raise ConfigError(
                f"--cache {data.cache} was made with {key} {kept.get(key)}, not {value}; choose "
                "another folder"
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _draw(data: Data, model: Path, cache: FilledCache, ids: list[list[int]]) -> None:
    sampling = RolloutSampling(
        max_tokens=data.max_tokens,
        temperature=data.temperature,
        per_prompt=data.per_prompt,
        seed=data.seed,
    )
    with Sampler(str(model), data.flags, sampling) as sampler:
        for name, indices in cache.sets.items():
            sampler.draw([(i, ids[i]) for i in indices], cache.folder, name)


def _compute_states(data: Data, model: Path, cache: FilledCache) -> None:
    backbone = None
    for name, indices in cache.sets.items():
        total = len(indices) * data.per_prompt
        writer = ShardWriter(cache.folder, name)
        if writer.written == total:
            continue
        backbone = backbone or Backbone(model)
        missing = islice(read(cache.folder, name), writer.written, None)
        bar = tqdm(total=total, initial=writer.written, desc=f"{name}: states", unit="response")
        for rollout, states in backbone.states(missing):
            tokens = torch.tensor(rollout.tokens)
            writer.add(states, tokens, ended=rollout.ended, prompt=rollout.prompt)
            bar.update()
        writer.flush()
        bar.close()
