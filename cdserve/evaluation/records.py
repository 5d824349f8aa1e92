"""Records of answers in the journals of an evaluation."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from cdserve.client.answers import Answer
from cdserve.errors import ConfigError

_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An answer with its rewards.

    Attributes:
        prompt: index of the prompt in its file, from 0.
        draw: index of the answer among those to the prompt, from 0.
        seed: sampling seed of the request.
        text: the answer's text.
        finish_reason: ``stop``, or ``length`` if the answer was cut.
        tokens: length of the answer, including the end token.
        began: time of the request, in seconds since 1970.
        seconds: time from the request to the end of the answer.
        blocks: seconds from the request to each piece of text.
        reward: the scoring reward.
        gold: the held-out reward; None without one.
        report: the response's ``alignment`` without the trace; None without a report.
        steps: per decision, the tokens of the chosen candidate and the bound and the estimate of
            the KL in nats; None without a trace.
        pool: scoring reward of every candidate; None unless all are i.i.d. draws of the base.
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
        """The record's key in the journal."""
        return key(self.prompt, self.draw)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """A record from the fields in a journal.

        Raises:
            ConfigError: the fields are those of another version of cdserve.
        """
        try:
            return cls(**{name: value for name, value in fields.items() if name != "id"})
        except TypeError as error:
            raise ConfigError(f"a record is from another version of cdserve: {error}") from error

    def written(self) -> dict[str, Any]:
        """The fields for a journal."""
        return {"id": self.id, **asdict(self)}


def key(prompt: int, draw: int) -> str:
    """The journal key of an answer."""
    return f"{prompt}.{draw}"


def seed_of(seed: int, policy: str, prompt: int, draw: int) -> int:
    """The seed of a request, hashed from all arguments; 63 bits."""
    name = f"{seed}/{policy}/{prompt}/{draw}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


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
    """The record of an answer.

    Args:
        rewards: the scoring reward and the held-out reward.
        pooled: name of the scoring reward if all candidates are i.i.d. draws of the base.
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
    rewards = [
        candidate["rewards"].get(reward)
        for decision in trace
        for candidate in decision["candidates"]
    ]
    return None if None in rewards else rewards
