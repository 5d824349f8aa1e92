"""Slots: never more than there are, shared evenly, none lost."""

import asyncio
import random
import time
from collections import Counter

import pytest
import uvloop

from cdserve.engine.slots import Slots
from tests.waiting import HANG_SECONDS, turns


class Holder:
    """Holds a slot until it is told to give it back."""

    def __init__(self, slots: Slots, owner: str, wait: float | None = None) -> None:
        self.granted: bool | None = None
        self.answered, self.done = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(slots, owner, wait))

    async def _hold(self, slots: Slots, owner: str, wait: float | None) -> None:
        async with slots.slot(owner, wait) as self.granted:
            self.answered.set()
            await self.done.wait()


async def test_free_slot_goes_to_the_owner_that_holds_the_fewest() -> None:
    slots = Slots(4)
    large = [Holder(slots, "large") for _ in range(8)]
    await turns()
    small = [Holder(slots, "small") for _ in range(4)]
    for i in range(4):
        large[i].done.set()
        await turns()
    # Two of those that gave a slot back were followed by the newcomer's, the others alternate.
    assert sum(holder.granted is True for holder in small) == 2
    assert sum(holder.granted is True for holder in large) == 6
    for holder in [*large, *small]:
        holder.done.set()
    await asyncio.gather(*(holder.task for holder in [*large, *small]))


async def test_ties_between_owners_go_to_the_one_that_asked_first() -> None:
    slots = Slots(1)
    first, second, third = (Holder(slots, owner) for owner in "abc")
    await turns()
    first.done.set()
    await turns()
    assert (second.granted, third.granted) == (True, None)
    second.done.set()
    third.done.set()
    await asyncio.gather(first.task, second.task, third.task)


async def test_share_is_what_is_free_and_an_equal_part_once_candidates_wait() -> None:
    slots = Slots(12)
    shares = [slots.share("a")]
    holders = [Holder(slots, "a") for _ in range(9)]
    await turns()
    shares += [slots.share("a"), slots.share("b")]
    holders += [Holder(slots, "b") for _ in range(4)]
    await turns()
    shares += [slots.share(owner) for owner in "abc"]
    assert shares == [12, 12, 3, 9, 6, 4]
    for holder in holders:
        holder.done.set()
    await asyncio.gather(*(holder.task for holder in holders))
    assert slots.share("c") == 12


async def test_slot_wait_ends_at_its_limit() -> None:
    slots = Slots(1)
    holder = Holder(slots, "a")
    await turns()
    late = Holder(slots, "b", wait=0.01)
    late.done.set()
    await late.task
    assert late.granted is False
    holder.done.set()
    await holder.task
    async with slots.slot("c") as granted:
        assert granted


@pytest.mark.parametrize("granted_meanwhile", [False, True])
async def test_cancelled_owner_returns_its_slot(granted_meanwhile: bool) -> None:
    slots = Slots(1)
    holder, waiting = Holder(slots, "a"), Holder(slots, "b")
    await turns()
    if granted_meanwhile:  # in the same turn, before the waiting task runs again
        holder.done.set()
        await asyncio.sleep(0)
    waiting.task.cancel()
    await asyncio.gather(waiting.task, return_exceptions=True)
    holder.done.set()
    await holder.task
    async with asyncio.timeout(HANG_SECONDS), slots.slot("c") as granted:
        assert granted


@pytest.mark.parametrize("seed", range(20))
async def test_random_schedules_neither_lose_slots_nor_lend_them_twice(seed: int) -> None:
    rng = random.Random(seed)
    slots, running, most = Slots(3), Counter[str](), 0

    async def one(owner: str) -> None:
        nonlocal most
        wait = rng.choice([None, None, 0.0])
        async with slots.slot(owner, wait) as granted:
            if granted:
                running[owner] += 1
                most = max(most, running.total())
                try:
                    await turns(rng.randrange(8))
                finally:
                    running[owner] -= 1

    tasks = [asyncio.create_task(one(rng.choice("abcd"))) for _ in range(60)]
    for task in rng.sample(tasks, 20):
        await turns(rng.randrange(4))
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    holders = [Holder(slots, "z") for _ in range(4)]
    await turns()
    assert [holder.granted for holder in holders] == [True, True, True, None]
    for holder in holders:
        holder.done.set()
    await asyncio.gather(*(holder.task for holder in holders))


def test_slot_wait_is_never_shorter_than_its_limit() -> None:
    """uvloop's timers ring early by up to a millisecond; a deadline would seem not to have come."""

    async def early() -> int:
        slots, count = Slots(1), 0
        async with slots.slot("a"):
            for _ in range(60):
                ends = time.monotonic() + 0.0103
                async with slots.slot("b", ends - time.monotonic()) as granted:
                    assert not granted
                    count += time.monotonic() < ends
        return count

    assert uvloop.run(early()) == 0
