"""Slots bound the candidates that run in the engine at once, and are shared among requests."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from cdserve.engine.demand import Demand
from cdserve.observability.metrics import RUNNING_CANDIDATES, WAITING_CANDIDATES

EARLY = 0.002
"""Seconds by which a timer of the event loop may fire early."""
_POLL = 0.005
"""Seconds between checks for slots returned by other servers, while candidates wait."""


class Slots:
    """Grants slots to candidates, max-min fair over requests.

    A free slot goes to the request that holds the fewest; ties go to the one that asked first.

    Args:
        count: number of slots.
        demand: coordinates several API servers that share the slots; None for one server.
    """

    def __init__(self, count: int, demand: Demand | None = None) -> None:
        self.count = count
        self._demand = demand
        self._running = 0
        self._held = Counter[Hashable]()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self._look: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(self, owner: Hashable, wait: float | None = None) -> AsyncIterator[bool]:
        """Waits for a slot and holds it.

        Args:
            owner: the request.
            wait: seconds to wait at most; None for no limit.

        Yields:
            Whether a slot was granted in time.
        """
        granted = await self._acquire(owner, wait)
        try:
            yield granted
        finally:
            if granted:
                self._release(owner)

    def available(self, count: int) -> bool:
        """Whether this many candidates would get their slots at once."""
        return not self._waiting and count <= self.count - self._running - self._others[0]

    def share(self, owner: Hashable) -> int:
        """Slots that a request can have now: those it holds and the free ones.

        If there are none, or other candidates wait, it can have an equal share of all slots, and
        keeps what it holds.
        """
        running, requests = self._others
        held, free = self._held[owner], self.count - self._running - running
        if free > 0 and not self._waiting:
            return held + free
        requests += len(self._held.keys() | self._waiting.keys() | {owner})
        return max(held, self.count // requests)

    @property
    def _others(self) -> tuple[int, int]:
        """Slots that other API servers hold, and their requests that hold or await some."""
        return (0, 0) if self._demand is None else self._demand.others

    async def _acquire(self, owner: Hashable, wait: float | None) -> bool:
        if self._demand is None and not self._waiting and self._running < self.count:
            self._hold(owner)
            return True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        WAITING_CANDIDATES.inc()
        self._grant()
        try:
            async with asyncio.timeout(None if wait is None else wait + EARLY):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # granted in the meantime
                self._release(owner)
            else:
                self._leave(owner, turn)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def _hold(self, owner: Hashable) -> None:
        self._running += 1
        self._held[owner] += 1
        RUNNING_CANDIDATES.inc()

    def _release(self, owner: Hashable) -> None:
        self._running -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        RUNNING_CANDIDATES.dec()
        self._give_back(1)
        self._grant()

    def _grant(self) -> None:
        """Grants free slots to waiting candidates."""
        free = self._take()
        while self._waiting and free:
            # min returns the first minimum, and a dict keeps the order of requests.
            following = min(self._waiting, key=lambda one: self._held[one])
            turn = self._waiting[following][0]
            self._leave(following, turn)
            if not turn.cancelled():  # a cancelled task leaves the queue by itself
                free -= 1
                self._hold(following)
                turn.set_result(None)
        self._give_back(free)
        if self._demand is not None and self._waiting and self._look is None:
            self._look = asyncio.get_running_loop().call_later(_POLL, self._look_again)

    def _take(self) -> int:
        """Number of slots that this server may grant now."""
        if self._demand is None:
            return self.count - self._running
        waiting = sum(map(len, self._waiting.values()))
        requests = len(self._held.keys() | self._waiting.keys())
        return self._demand.take(self.count, waiting, requests)

    def _give_back(self, slots: int) -> None:
        """Returns unused slots to the other servers."""
        if self._demand is not None and slots:
            self._demand.give_back(slots)

    def _look_again(self) -> None:
        self._look = None
        self._grant()

    def _leave(self, owner: Hashable, turn: "asyncio.Future[None]") -> None:
        """Removes a waiting candidate from the queue, if it is still there."""
        if turn in self._waiting.get(owner, ()):
            self._waiting[owner].remove(turn)
            WAITING_CANDIDATES.dec()
            if not self._waiting[owner]:
                del self._waiting[owner]
