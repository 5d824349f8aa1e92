"""Candidates that the engine is drawing, for clients that watch them grow."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cdserve.errors import ScoringError
from cdserve.report import LiveCandidate, LiveDraw
from cdserve.scoring import Objective, Response


@dataclass(slots=True, kw_only=True)
class Draft:
    """One candidate under way.

    Attributes:
        length: maximum length of the candidate, in tokens.
        before: length of the response before it, in tokens.
    """

    length: int
    before: int
    text: str = ""
    tokens: int = 0
    values: Mapping[str, float] | None = None
    """V of one of the last prefixes, by value head; None before the first value."""

    def update(self, text: str, tokens: int, values: Mapping[str, float] | None) -> None:
        """Takes what the engine has drawn; ignores the token after the block."""
        if tokens <= self.length:
            self.text, self.tokens = text, tokens
        self.values = values or self.values


@dataclass(slots=True)
class _Draw:
    draw: int
    drafts: Sequence[Draft]
    tokens_sent: Sequence[int] = ()
    """Length of each draft when it was sent last; empty if it was not."""


@dataclass(slots=True)
class Drafts:
    """The drafts of a request, by choice.

    Args:
        objective: scores the drafts if it reads nothing but values and lengths, which is cheap.
    """

    objective: Objective
    _draws: dict[int, _Draw] = field(default_factory=dict)

    def begin(self, choice: int, draw: int, drafts: Sequence[Draft]) -> None:
        """Replaces the drafts of a choice by those of its next draw."""
        self._draws[choice] = _Draw(draw, drafts)

    def end(self, choice: int) -> None:
        """Removes the drafts of a choice."""
        self._draws.pop(choice, None)

    async def news(self) -> list[LiveDraw]:
        """The draws that have grown since the last call."""
        news: list[LiveDraw] = []
        for choice, draw in sorted(self._draws.items()):
            drafts = list(draw.drafts)  # more may begin while these are scored
            tokens = [draft.tokens for draft in drafts]
            if tokens == draw.tokens_sent or not any(tokens):
                continue
            draw.tokens_sent = tokens
            scores = await self._scores(drafts)
            candidates: list[LiveCandidate] = [
                {"text": draft.text, "tokens": draft.tokens, "score": score}
                for draft, score in zip(drafts, scores, strict=True)
            ]
            news.append({"choice": choice, "draw": draw.draw, "candidates": candidates})
        return news

    async def _scores(self, drafts: Sequence[Draft]) -> list[float | None]:
        scores: list[float | None] = [None] * len(drafts)
        if self.objective.reads_text or self.objective.token_stats:
            return scores
        valued = [i for i, d in enumerate(drafts) if d.values or not self.objective.reads_values]
        responses = [
            Response(
                prompt="",
                text="",
                tokens=drafts[i].before + drafts[i].tokens,
                finished=False,
                values=drafts[i].values or {},
            )
            for i in valued
        ]
        with suppress(ScoringError):  # the decision will raise it
            for i, score in zip(valued, await self.objective.score(responses), strict=True):
                scores[i] = score.total
        return scores
