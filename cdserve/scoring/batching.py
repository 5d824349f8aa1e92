"""A queue in front of a scorer that batches the items of all requests."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from cdserve.errors import RewardFailure

Item = TypeVar("Item", bound=Hashable)
Score = TypeVar("Score")


class Batcher(Generic[Item, Score]):
    """Scores items of concurrent requests in batches; equal items are scored once.

    Args:
        score: scores one batch; an exception in place of a score fails that item alone.
        max_batch: most items in a batch.
        max_wait: seconds that a batch which could start waits for more items.
        max_waiting: most items that may wait; more are refused.
        concurrency: batches that run at the same time.
        on_wait: called with the seconds that each item waited for its batch to start.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Item]], Awaitable[Sequence[Score | BaseException]]],
        *,
        max_batch: int,
        max_wait: float,
        max_waiting: int = 4096,
        concurrency: int = 1,
        on_wait: Callable[[float], object] | None = None,
    ) -> None:
        self._score = score
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_waiting = max_waiting
        self._slots = asyncio.Semaphore(concurrency)
        self._on_wait = on_wait
        self._waiting_since: dict[Item, float] = {}
        self._waiting: dict[Item, asyncio.Future[Score]] = {}
        self._running: dict[Item, asyncio.Future[Score]] = {}
        self._callers: Counter[asyncio.Future[Score]] = Counter()
        self._full = asyncio.Event()
        self._collector: asyncio.Task[None] | None = None
        self._batches: dict[asyncio.Task[None], dict[Item, asyncio.Future[Score]]] = {}

    async def score(self, items: Sequence[Item]) -> list[Score]:
        """Scores of items, in their order.

        An item is dropped once all its callers have left, by cancellation or by the failure of
        another item; a running batch is cancelled once it holds no other items.

        Raises:
            RewardFailure: too many items wait already.
            Exception: the scorer's, for one of the items or for a batch that has one.
        """
        futures = self._waiting | self._running
        fresh = [item for item in dict.fromkeys(items) if item not in futures]
        if len(self._waiting) + len(fresh) > self._max_waiting:
            raise RewardFailure(
                f"failed: {len(self._waiting)} responses wait to be scored; {len(fresh)} more "
                f"would pass the limit of {self._max_waiting}"
            )
        new = {item: asyncio.get_running_loop().create_future() for item in fresh}
        self._waiting |= new
        self._waiting_since |= dict.fromkeys(fresh, time.monotonic())
        if len(self._waiting) >= self._max_batch:
            self._full.set()
        if self._waiting and self._collector is None:
            self._collector = asyncio.create_task(self._collect())
        futures |= new
        awaited = {futures[item] for item in items}
        self._callers.update(awaited)
        try:
            # Shielded: a cancelled caller must not cancel what others wait for.
            return await asyncio.gather(*(asyncio.shield(futures[item]) for item in items))
        finally:
            self._leave(awaited)

    def _leave(self, futures: Collection["asyncio.Future[Score]"]) -> None:
        """Ends a caller's wait; drops the items that no other caller waits for."""
        self._callers.subtract(futures)
        for future in futures:
            if self._callers[future] == 0:
                del self._callers[future]
        if all(future.done() for future in futures):
            return
        for item, future in list(self._waiting.items()):
            if future not in self._callers:
                del self._waiting[item], self._waiting_since[item]
        for task, batch in self._batches.items():
            if not any(future in self._callers for future in batch.values()):
                task.cancel()
                self._forget(batch)  # now, so that no new caller waits for it

    async def _collect(self) -> None:
        """Starts batches until nothing waits."""
        while self._waiting:
            await self._slots.acquire()
            await self._fill()
            batch = dict(islice(self._waiting.items(), self._max_batch))
            if not batch:  # all callers left
                self._slots.release()
                continue
            for item in batch:
                del self._waiting[item]
                self._waited(time.monotonic() - self._waiting_since.pop(item))
            self._running |= batch
            task = asyncio.create_task(self._run(batch))
            self._batches[task] = batch
            task.add_done_callback(self._end)
        self._collector = None

    def _end(self, task: "asyncio.Task[None]") -> None:
        del self._batches[task]
        self._slots.release()

    def _forget(self, batch: "dict[Item, asyncio.Future[Score]]") -> None:
        for item, future in batch.items():
            if self._running.get(item) is future:
                del self._running[item]

    def _waited(self, seconds: float) -> None:
        if self._on_wait is not None:
            self._on_wait(seconds)

    async def _fill(self) -> None:
        self._full.clear()
        if len(self._waiting) < self._max_batch:
            try:
                async with asyncio.timeout(self._max_wait):
                    await self._full.wait()
            except TimeoutError:
                pass

    async def _run(self, batch: "dict[Item, asyncio.Future[Score]]") -> None:
        try:
            scores = await self._score(list(batch))
            for future, score in zip(batch.values(), scores, strict=True):
                if isinstance(score, BaseException):
                    _fail(future, score)
                else:
                    future.set_result(score)
        except Exception as error:  # raised to the callers that wait
            for future in batch.values():
                if not future.done():
                    _fail(future, error)
        finally:
            self._forget(batch)


def _fail(future: "asyncio.Future[Score]", error: BaseException) -> None:
    future.set_exception(error)
    future.exception()  # marks it as retrieved, even if no caller waits any more
