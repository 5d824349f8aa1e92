"""Drafts: what a client sees of candidates under way."""

from collections.abc import Sequence

import pytest

from cdserve.engine.drafts import Draft, Drafts
from cdserve.scoring import Objective
from cdserve.scoring.programmatic import Length, Regex, ValueHead

HEAD = Objective({"v": 2.0}, {"v": ValueHead("v")})


def drafts_of(objective: Objective = HEAD, count: int = 2) -> tuple[Drafts, list[Draft]]:
    """Drafts of one draw of blocks of at most 4 tokens, and each of them."""
    drafts, each = Drafts(objective), [Draft(length=4, before=8) for _ in range(count)]
    drafts.begin(0, 3, each)
    return drafts, each


async def test_news_are_the_draws_that_have_grown() -> None:
    drafts, (first, second) = drafts_of()
    assert await drafts.news() == []
    first.update("so", 1, None)
    second.update("oh", 2, {"v": 0.25})
    assert await drafts.news() == [
        {
            "choice": 0,
            "draw": 3,
            "candidates": [
                {"text": "so", "tokens": 1, "score": None},
                {"text": "oh", "tokens": 2, "score": 0.5},
            ],
        }
    ]
    assert await drafts.news() == []
    first.update("so far", 2, {"v": 1.0})
    (draw,) = await drafts.news()
    assert [candidate["score"] for candidate in draw["candidates"]] == [2.0, 0.5]


async def test_token_after_the_block_is_not_shown() -> None:
    drafts, (draft,) = drafts_of(count=1)
    draft.update("four", 4, {"v": 1.0})
    draft.update("four more", 5, {"v": 2.0})
    (draw,) = await drafts.news()
    assert draw["candidates"] == [{"text": "four", "tokens": 4, "score": 4.0}]


async def test_draft_that_begins_while_others_are_scored_waits_for_the_next_news() -> None:
    drafts, each = drafts_of()
    each[0].update("so", 1, None)
    score = Drafts._scores

    async def scored(self: Drafts, known: Sequence[Draft]) -> list[float | None]:
        each.append(Draft(length=4, before=8))
        return await score(self, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafts, "_scores", scored)
        (draw,) = await drafts.news()
    assert len(draw["candidates"]) == 2
    each[2].update("oh", 1, None)
    (draw,) = await drafts.news()
    assert len(draw["candidates"]) == 3


async def test_ended_choice_has_no_news() -> None:
    drafts, (draft, _) = drafts_of()
    draft.update("so", 1, None)
    drafts.end(0)
    assert await drafts.news() == []


@pytest.mark.parametrize(
    ("objective", "score"),
    [
        (Objective({"long": 1.0}, {"long": Length(target=5, tolerance=0)}), -1.0),
        (Objective({"v": 1.0, "r": 1.0}, {"v": ValueHead("v"), "r": Regex("a")}), None),
        (Objective({"v": 1.0}, {"v": ValueHead("v")}), None),  # the value is not finite
    ],
    ids=["length", "text", "nan"],
)
async def test_drafts_are_scored_by_values_and_lengths_only(
    objective: Objective, score: float | None
) -> None:
    drafts, (draft,) = drafts_of(objective, count=1)
    draft.update("so", 2, {"v": float("nan")})
    (draw,) = await drafts.news()
    assert draw["candidates"][0]["score"] == score
