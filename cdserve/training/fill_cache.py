"""Fills a cache with responses from the engine and hidden states from the base model."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from cdserve.errors import ConfigError
from cdserve.prompts import Prompt, encode, read_prompts, text_of
from cdserve.training.backbone import Backbone
from cdserve.training.cache import SETTINGS
from cdserve.training.job import Data, DataFile
from cdserve.training.rollouts import RolloutSampling, Sampler, read
from value_heads import ShardWriter, hash_base

MOST_HELD_OUT = 1000
"""Maximum number of prompts in the validation set and in the test set."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledCache:
    """A cache with all responses and states.

    Attributes:
        folder: folder of the cache.
        prompts: all prompts; the index is ``Rollout.prompt``.
        texts: text of every prompt as rewards receive it.
        counts: number of responses in ``train``, ``validation`` and ``test``.
        base_hash: hash of the base model.
        reward_names: names of the G rewards in a data file.
        rewards: these rewards by set, float32 [B, G].
        pairs: whether consecutive responses are a chosen and a rejected one, with G = 0.
    """

    folder: Path
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    counts: Mapping[str, int]
    base_hash: str
    reward_names: tuple[str, ...] = ()
    rewards: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: bool = False


def fill_cache(data: Data, model: Path) -> FilledCache:
    """Draws the responses and computes the states that the cache lacks.

    Args:
        data: the responses.
        model: folder of the base model.

    Raises:
        ConfigError: the cache has other settings, or the prompts cannot be used.
    """
    prompts, sets = _split_prompts(data)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = encode(prompts, tokenizer)
    cache = FilledCache(
        folder=data.cache,
        prompts=prompts,
        texts=[text_of(prompt, tokenizer) for prompt in prompts],
        counts={name: len(indices) * data.per_prompt for name, indices in sets.items()},
        base_hash=hash_base(model),
    )
    settings = {
        "base_hash": cache.base_hash,
        "prompts_sha256": digest(data.prompts),
        "test_prompts_sha256": data.test_prompts and digest(data.test_prompts),
        "held_out": data.held_out,
        "per_prompt": data.per_prompt,
        "max_tokens": data.max_tokens,
        "temperature": data.temperature,
        "sample_seed": data.seed,
    }
    check_settings(data, settings)
    _draw(data, model, sets, ids)
    compute_states(model, cache)
    return cache


def split(data: Data | DataFile, items: Sequence[Item], source: str) -> dict[str, list[Item]]:
    """Splits prompts, or other items, at random into the sets of the three purposes.

    Without a held-out share all are in the test set, in their order.

    Args:
        source: flag and file of the prompts, in messages.

    Raises:
        ConfigError: there are too few items.
    """
    order = list(items)
    if data.held_out is None:
        return {"test": order}
    random.Random(data.seed).shuffle(order)
    count = min(max(1, round(data.held_out * len(order))), MOST_HELD_OUT)
    if len(order) < 3 * count:
        raise ConfigError(f"{source} has {len(order)} prompts; at least 3 are required")
    validation, test, train = order[:count], order[count : 2 * count], order[2 * count :]
    return {"test": test, "validation": validation, "train": train}


def _split_prompts(data: Data) -> tuple[list[Prompt], dict[str, list[int]]]:
    prompts = read_prompts(data.prompts)
    sets = split(data, range(len(prompts)), f"--prompts {data.prompts}")
    if data.test_prompts is None:
        return prompts, sets
    others = read_prompts(data.test_prompts)
    test = list(range(len(prompts), len(prompts) + len(others)))
    train = sets["test"] + sets["train"]
    return prompts + others, {"test": test, "validation": sets["validation"], "train": train}


def check_settings(data: Data | DataFile, settings: Mapping[str, Any]) -> None:
    """Checks the settings of an existing cache; writes them for a new one.

    Raises:
        ConfigError: the cache has other settings.
    """
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


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _draw(data: Data, model: Path, sets: Mapping[str, list[int]], ids: Sequence[list[int]]) -> None:
    sampling = RolloutSampling(
        max_tokens=data.max_tokens,
        temperature=data.temperature,
        per_prompt=data.per_prompt,
        seed=data.seed,
    )
    with Sampler(str(model), data.flags, sampling) as sampler:
        for name, indices in sets.items():
            sampler.draw([(i, ids[i]) for i in indices], data.cache, name)


def compute_states(model: Path, cache: FilledCache) -> None:
    """Computes the hidden states that the cache lacks."""
    backbone = None
    for name, total in cache.counts.items():
        writer = ShardWriter(cache.folder, name, group=2 if cache.pairs else 1)
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
