"""What an evaluation is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdserve.client.answers import Sampling
from cdserve.client.policies import NamedPolicy

BASE = "base"
"""The name of plain decoding, with which all policies are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An evaluation.

    Attributes:
        prompts: the JSONL file.
        out: the folder of records and results.
        policies: those to compare with the base, which is not among them.
        reward: the scoring reward's name; None for the server's default.
        gold: a held-out reward: a name of the server's, or ``module:function``.
        sampling: how tokens are drawn.
        limit: the first prompts of the file only.
        draws: answers a prompt.
        concurrency: answers at once.
        seed: of all seeds.
        command: that asks for it, for the report.
    """

    prompts: Path
    out: Path
    policies: Sequence[NamedPolicy]
    reward: str | None
    gold: str | None
    sampling: Sampling
    limit: int | None
    draws: int
    concurrency: int
    seed: int
    command: str
