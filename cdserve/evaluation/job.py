"""An evaluation as the command line requests it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdserve.client.answers import Sampling
from cdserve.client.policies import NamedPolicy

BASE = "base"
"""Name of plain decoding, with which all policies are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationJob:
    """An evaluation.

    Attributes:
        prompts: JSONL file of prompts.
        out: folder of records and results.
        policies: policies to compare with the base, which is not among them.
        reward: name of the scoring reward; None for the server's default.
        gold: held-out reward, a server reward or ``module:function``; None for no held-out reward.
        sampling: sampling parameters.
        limit: number of prompts to use, from the first; None for all.
        draws: number of answers per prompt and policy.
        concurrency: maximum number of concurrent requests.
        seed: seed from which the seed of each request is hashed.
        command: the command line, for the report.
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
