"""A collection as the command line requests it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdserve.client.answers import Sampling
from cdserve.client.policies import NamedPolicy
from cdserve.client.server import ServerArgs
from cdserve.collection.formats import Filters
from cdserve.decoders import load
from cdserve.errors import ConfigError, safe_repr
from cdserve.prompts import Prompt

BUILT_IN = {name: decoder.policy.whole_responses for name, decoder in load([]).items()}
"""Whether the candidates of each built-in method are whole responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionJob:
    """Prompts, how to answer them, and the formats to write.

    Attributes:
        mixed: whether the prompts' file has both texts and chats.
        out: folder of the answers and the data.
        formats: names of ``formats.FORMATS``.
        shard_size: maximum number of rows per file.
    """

    prompts: Sequence[Prompt]
    mixed: bool
    out: Path
    policy: NamedPolicy
    sampling: Sampling
    seed: int
    formats: Sequence[str]
    filters: Filters
    shard_size: int
    server: ServerArgs

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the answers that are known without the server."""
        return {
            "policy": self.policy.alignment,
            "max_tokens": self.sampling.max_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": self.seed,
            **({} if self.server.model is None else {"model": self.server.model}),
        }

    def seed_of(self, index: int) -> int:
        """The sampling seed of a prompt, hashed from ``seed`` and its index; 56 bits."""
        key = f"{self.seed}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def resolve(policy: NamedPolicy, presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The policy as an object, without ``report``.

    Raises:
        ConfigError: the server has no preset of the policy's name.
    """
    alignment = policy.alignment
    if isinstance(alignment, str):
        if alignment not in presets:
            raise ConfigError(
                f"--policy {safe_repr(alignment)} is not a preset; this server has "
                f"{', '.join(presets) or 'none'}"
            )
        alignment = dict(presets[alignment])
    return {key: value for key, value in alignment.items() if key != "report"}


def check_formats(
    method: str, methods: Mapping[str, bool], formats: Sequence[str], filters: Filters
) -> None:
    """Checks that the formats can be made from the method's answers.

    Args:
        method: the policy's method.
        methods: whether the candidates of each method are whole responses.

    Raises:
        ConfigError: a format needs several whole responses per prompt, or scores.
    """
    if method == "none":
        raise ConfigError(
            "--policy none has no scores; use best_of_n n=1 for plain decoding with scores"
        )
    if methods.get(method):
        return
    for name, condition in (("preference", ""), ("unpaired", " without --label-threshold")):
        if name in formats and not (name == "unpaired" and filters.threshold is not None):
            raise ConfigError(
                f"--format {name}{condition} compares whole responses to a prompt, but {method} "
                f"gives only one; use {', '.join(name for name, whole in methods.items() if whole)}"
            )
