"""What a collection is asked for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdserve.client.answers import Sampling
from cdserve.client.policies import NamedPolicy
from cdserve.collection.answered import SEVERAL
from cdserve.collection.formats import Filters
from cdserve.errors import ConfigError, safe_repr
from cdserve.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Prompts, how they are answered, and what is made of the answers.

    Attributes:
        mixed: whether there are texts and chats where the prompts come from.
        url: of a server that runs; None to start one of ``config`` with vLLM's ``flags``.
        model: the id that requests name; None for the server's first.
        concurrency: requests at once.
        shard_size: rows a file.
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
    url: str | None
    config: Path
    flags: Sequence[str]
    model: str | None
    api_key: str
    concurrency: int

    @property
    def settings(self) -> dict[str, Any]:
        """What is known of the answers before the server is asked."""
        return {
            "policy": self.policy.alignment,
            "max_tokens": self.sampling.max_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": self.seed,
            **({} if self.model is None else {"model": self.model}),
        }

    def seed_of(self, index: int) -> int:
        """A seed of its own for every prompt."""
        key = f"{self.seed}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def resolve(policy: NamedPolicy, presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The policy as an object, without ``report``.

    Raises:
        ConfigError: it names a preset that the server does not have.
    """
    sent = policy.alignment
    if isinstance(sent, str):
        if sent not in presets:
            raise ConfigError(
                f"--policy {safe_repr(sent)} names no preset; this server has "
                f"{', '.join(presets) or 'none'}"
            )
        sent = dict(presets[sent])
    return {key: value for key, value in sent.items() if key != "report"}


def check_formats(method: object, formats: Sequence[str], filters: Filters) -> None:
    """Checks that the method's answers can be written in the formats.

    Raises:
        ConfigError: they cannot.
    """
    if method == "none":
        raise ConfigError(
            "--policy none has no scores; best_of_n n=1 is plain decoding with the scores of what "
            "it returns"
        )
    if method in SEVERAL:
        return
    for name, needs in (("preference", ""), ("unpaired", " without --label-threshold")):
        if name in formats and not (name == "unpaired" and filters.threshold is not None):
            raise ConfigError(
                f"--format {name}{needs} compares whole responses to a prompt, and {method} has "
                f"one; accepted for it: {', '.join(SEVERAL)}"
            )
