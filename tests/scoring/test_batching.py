"""The queue in front of a scorer."""

import asyncio
from collections.abc import Sequence

import pytest

from cdserve.errors import RewardFailure
from cdserve.scoring.batching import Batcher
from tests.waiting import HANG_SECONDS, turns


class Scorer:
    """Scores a text by its length, once it is let go; keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, texts: Sequence[str]) -> list[float]:
        self.batches.append(list(texts))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in texts:
            raise ValueError("a bad text")
        return [float(len(text)) for text in texts]


async def test_waiting_items_are_scored_in_one_batch() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=8, max_wait=0)
    first = asyncio.create_task(queue.score(["a"]))
    await turns()
    later = [asyncio.create_task(queue.score([text])) for text in ("bb", "ccc", "dddd")]
    await turns()
    assert scorer.batches == [["a"]]
    scorer.go.set()
    assert await first == [1.0]
    assert await asyncio.gather(*later) == [[2.0], [3.0], [4.0]]
    assert scorer.batches == [["a"], ["bb", "ccc", "dddd"]]


async def test_equal_items_are_scored_once_while_waiting_or_running() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=8, max_wait=0)
    one = asyncio.create_task(queue.score(["a", "bb", "a"]))
    await turns()
    other = asyncio.create_task(queue.score(["bb", "c"]))
    await turns()
    scorer.go.set()
    assert await one == [1.0, 2.0, 1.0]
    assert await other == [2.0, 1.0]
    assert scorer.batches == [["a", "bb"], ["c"]]


async def test_full_batch_starts_at_once() -> None:
    scorer = Scorer()
    scorer.go.set()
    queue = Batcher(scorer, max_batch=2, max_wait=10 * HANG_SECONDS)
    async with asyncio.timeout(HANG_SECONDS):
        assert await queue.score(["a", "b", "c", "d"]) == [1.0] * 4
    assert scorer.batches == [["a", "b"], ["c", "d"]]


async def test_batch_waits_at_most_max_wait_for_more_items() -> None:
    scorer = Scorer()
    scorer.go.set()
    queue = Batcher(scorer, max_batch=8, max_wait=0.05)
    found = await asyncio.gather(queue.score(["a"]), queue.score(["bb"]))
    assert found == [[1.0], [2.0]]
    assert scorer.batches == [["a", "bb"]]


async def test_concurrency_runs_several_batches_at_once() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=1, max_wait=0, concurrency=2)
    task = asyncio.create_task(queue.score(["a", "b", "c"]))
    await turns()
    assert scorer.batches == [["a"], ["b"]]
    scorer.go.set()
    assert await task == [1.0] * 3


async def test_failure_of_a_batch_reaches_only_its_callers() -> None:
    scorer = Scorer()
    scorer.go.set()
    queue = Batcher(scorer, max_batch=1, max_wait=0)
    good, bad = await asyncio.gather(
        queue.score(["a"]), queue.score(["bad"]), return_exceptions=True
    )
    assert good == [1.0]
    assert isinstance(bad, ValueError)
    assert await queue.score(["bb"]) == [2.0]


async def test_scorer_that_returns_too_few_scores_is_an_error() -> None:
    async def short(texts: Sequence[str]) -> list[float]:
        return [1.0]

    with pytest.raises(ValueError, match="shorter"):
        await Batcher(short, max_batch=8, max_wait=0).score(["a", "b"])


async def test_items_beyond_max_waiting_are_rejected_and_earlier_ones_scored() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=1, max_wait=0, max_waiting=2)
    task = asyncio.create_task(queue.score(["a", "b"]))
    await turns()  # a runs, b waits
    with pytest.raises(RewardFailure, match="1 responses wait to be scored; 2 more would pass"):
        await queue.score(["c", "d"])
    scorer.go.set()
    assert await task == [1.0, 1.0]


async def test_cancelled_caller_leaves_shared_items_to_others() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=8, max_wait=0)
    one = asyncio.create_task(queue.score(["a"]))
    other = asyncio.create_task(queue.score(["a"]))
    await turns()
    one.cancel()
    await turns()
    scorer.go.set()
    assert await other == [1.0]
    assert scorer.batches == [["a"]]


async def test_batch_is_cancelled_once_all_its_callers_have_left() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=2, max_wait=0)
    one = asyncio.create_task(queue.score(["a", "bb"]))
    await turns()
    one.cancel()
    await turns()
    again = asyncio.create_task(queue.score(["a"]))  # the slot is free
    await turns()
    scorer.go.set()
    assert await again == [1.0]
    assert scorer.batches == [["a", "bb"], ["a"]]
    assert scorer.cancelled == 1


async def test_new_caller_of_an_item_of_a_cancelled_batch_gets_a_score() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=2, max_wait=0)
    one = asyncio.create_task(queue.score(["a"]))
    await turns()
    one.cancel()
    await asyncio.sleep(0)  # the caller has left; its batch has not ended yet
    scorer.go.set()
    assert await queue.score(["a"]) == [1.0]


async def test_waiting_items_of_a_cancelled_caller_are_not_scored() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=1, max_wait=0)
    one = asyncio.create_task(queue.score(["a"]))
    await turns()
    other = asyncio.create_task(queue.score(["bb", "ccc"]))
    kept = asyncio.create_task(queue.score(["ccc"]))
    await turns()
    other.cancel()
    await turns()
    scorer.go.set()
    assert await one == [1.0]
    assert await kept == [3.0]
    assert scorer.batches == [["a"], ["ccc"]]


async def test_queue_goes_on_after_its_only_waiting_caller_leaves() -> None:
    scorer = Scorer()
    queue = Batcher(scorer, max_batch=8, max_wait=0.01)
    one = asyncio.create_task(queue.score(["a"]))
    await turns()  # waits for its batch to fill
    one.cancel()
    await asyncio.sleep(0.05)
    scorer.go.set()
    async with asyncio.timeout(HANG_SECONDS):
        assert await queue.score(["bb"]) == [2.0]
    assert scorer.batches == [["bb"]]


async def test_empty_list_of_items_has_no_scores() -> None:
    assert await Batcher(Scorer(), max_batch=8, max_wait=0).score([]) == []
