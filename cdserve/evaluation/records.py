"""What is kept of an answer."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from cdserve.client.answers import Answer
from cdserve.errors import ConfigError

_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One answer with its rewards.

    Attributes:
        prompt: its number in the file, from 0.
        draw: the number of the answer to it, from 0.
        seed: of the request.
        text: of the answer.
        finish_reason: ``stop``, or ``length`` where it was cut.
        tokens: of the answer, the end token included.
        began: when it was asked for, in seconds since 1970.
        seconds: from the request to its end.
        blocks: seconds from the request to each piece of text.
        reward: the scoring reward.
        gold: the held-out reward; None where there is none.
        report: the answer's ``alignment`` without its trace; None where it has none.
        steps: of each decision the tokens it took, and the bound and the estimate of its KL in
            nats; None without a trace.
        pool: the scoring reward of all candidates, where these are i.i.d. draws of the base.
    """

    prompt: int
    draw: int
    seed: int
    text: str
    finish_reason: str | None
    tokens: int
    began: float
    seconds: float
    blocks: Sequence[float]
    reward: float
    gold: float | None
    report: Mapping[str, Any] | None
    steps: Sequence[Sequence[float]] | None
    pool: Sequence[float] | None

    @property
    def id(self) -> str:
        """The key in the journal."""
        return key(self.prompt, self.draw)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """A record out of a journal.

        Raises:
            ConfigError: it is another version's.
        """
        try:
            return cls(**{name: value for name, value in found.items() if name != "id"})
        except TypeError as error:
            raise ConfigError(f"a record is not of this version of cdserve: {error}") from error

    def written(self) -> dict[str, Any]:
        """The record for a journal."""
        return {"id": self.id, **asdict(self)}


def key(prompt: int, draw: int) -> str:
    """A record's key in its journal."""
    return f"{prompt}.{draw}"


def seed_of(seed: int, policy: str, prompt: int, draw: int) -> int:
    """The seed of a request, unlike that of any other (policy, prompt, draw); 63 bits."""
    named = f"{seed}/{policy}/{prompt}/{draw}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big") >> 1


def record(
    answer: Answer,
    *,
    prompt: int,
    draw: int,
    seed: int,
    began: float,
    rewards: tuple[float, float | None],
    pooled: str | None,
) -> Record:
    """What is kept of an answer.

    Args:
        rewards: the scoring and the held-out reward.
        pooled: the scoring reward's name where all candidates are draws of the base.
    """
    trace = None if answer.report is None else answer.report.get("trace")
    return Record(
        prompt=prompt,
        draw=draw,
        seed=seed,
        text=answer.text,
        finish_reason=answer.finish_reason,
        tokens=answer.tokens,
        began=round(began, _DIGITS),
        seconds=round(answer.seconds, _DIGITS),
        blocks=[round(seconds, _DIGITS) for seconds in answer.blocks],
        reward=rewards[0],
        gold=rewards[1],
        report=answer.report and {k: v for k, v in answer.report.items() if k != "trace"},
        steps=None if trace is None else [_step(decision) for decision in trace],
        pool=None if trace is None or pooled is None else _pool(trace, pooled),
    )


def _step(decision: Mapping[str, Any]) -> list[float]:
    (chosen,) = (candidate for candidate in decision["candidates"] if candidate["chosen"])
    return [chosen["tokens"], decision["kl"]["bound"], decision["kl"]["estimate"]]


def _pool(trace: Sequence[Mapping[str, Any]], reward: str) -> list[float] | None:
    found = [candidate["rewards"].get(reward) for one in trace for candidate in one["candidates"]]
    return None if None in found else found
