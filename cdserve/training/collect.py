"""Fills a cache: responses from the engine, their states from the base model."""

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
from cdserve.training.rollouts import Sampler, Sampling, read
from value_heads import ShardWriter, hash_base

MOST_HELD_OUT = 1000
"""Prompts of a set that is not trained on: more would make no figure better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A cache that is full.

    Attributes:
        folder: where it is.
        prompts: what rewards see of the prompts of both files, by the numbers that responses know
            them by.
        sets: the numbers of the prompts of ``train``, ``validation`` and ``test``.
        base_hash: of the base model.
    """

    folder: Path
    prompts: list[str]
    sets: Mapping[str, list[int]]
    base_hash: str


def collect(data: Data, model: Path) -> Collection:
    """Draws the responses and computes the states that the cache still lacks.

    Args:
        data: which responses.
        model: the base model's folder.

    Raises:
        ConfigError: the cache is of other settings, or the prompts cannot be used.
    """
    prompts, sets = _split(data)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = encode(prompts, tokenizer)
    collection = Collection(
        folder=data.cache,
        prompts=[text_of(prompt, tokenizer) for prompt in prompts],
        sets=sets,
        base_hash=hash_base(model),
    )
    _claim(data, collection)
    _draw(data, model, collection, ids)
    _compute_states(data, model, collection)
    return collection


def _split(data: Data) -> tuple[list[Prompt], dict[str, list[int]]]:
    prompts = read_prompts(data.prompts)
    order = list(range(len(prompts)))
    random.Random(data.seed).shuffle(order)
    count = min(max(1, round(data.held_out * len(order))), MOST_HELD_OUT)
    if len(order) < 3 * count:
        raise ConfigError(
            f"--prompts {data.prompts} has {len(order)} prompts; at least 3 are needed"
        )
    validation, rest = order[:count], order[count:]
    if data.test_prompts is None:
        return prompts, {"test": rest[:count], "validation": validation, "train": rest[count:]}
    others = read_prompts(data.test_prompts)
    test = list(range(len(prompts), len(prompts) + len(others)))
    return prompts + others, {"test": test, "validation": validation, "train": rest}


def _claim(data: Data, collection: Collection) -> None:
    """Makes the cache ours, or sees that it is."""
    wanted = {
        "base_hash": collection.base_hash,
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
        made = {"model": data.model, **wanted}  # the hash says which one; the name is for people
        path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ConfigError(
                f"--cache {data.cache} was made with {key} {found.get(key)}, not {value}: "
                "name another folder"
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _draw(data: Data, model: Path, collection: Collection, ids: list[list[int]]) -> None:
    sampling = Sampling(
        max_tokens=data.max_tokens,
        temperature=data.temperature,
        per_prompt=data.per_prompt,
        seed=data.seed,
    )
    with Sampler(str(model), data.flags, sampling) as sampler:
        for name, numbers in collection.sets.items():
            sampler.draw([(i, ids[i]) for i in numbers], collection.folder, name)


def _compute_states(data: Data, model: Path, collection: Collection) -> None:
    backbone = None
    for name, numbers in collection.sets.items():
        total = len(numbers) * data.per_prompt
        writer = ShardWriter(collection.folder, name)
        if writer.written == total:
            continue
        backbone = backbone or Backbone(model)
        missing = islice(read(collection.folder, name), writer.written, None)
        bar = tqdm(total=total, initial=writer.written, desc=f"states of {name}", unit="response")
        for rollout, states in backbone.states(missing):
            tokens = torch.tensor(rollout.tokens)
            writer.add(states, tokens, ended=rollout.ended, prompt=rollout.prompt)
            bar.update()
        writer.flush()
        bar.close()
