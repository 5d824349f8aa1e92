"""Slots that several API servers share: never more than there are, shared fairly, none lost."""

import asyncio
import random
from collections import Counter
from multiprocessing import get_context
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Barrier

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdserve.engine.demand import Demand, Server, SharedServers, parts, shared_servers
from cdserve.engine.slots import Slots
from tests.waiting import HANG_SECONDS, turns

from .test_slots import Holder

TURNS = st.integers(0, 99)
SERVERS = st.lists(
    st.builds(Server, st.integers(0, 9), st.integers(0, 40), st.integers(1, 20), TURNS),
    min_size=1,
    max_size=6,
)
OPERATIONS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["ask", "end", "leave", "look"])), max_size=200
)
"""Actions, each of one of four servers."""


@given(st.integers(0, 64), SERVERS)
def test_free_slots_go_to_the_servers_that_hold_the_fewest(
    free: int, servers: list[Server]
) -> None:
    taken = parts(free, servers)
    assert sum(taken) == min(free, sum(server.waiting for server in servers))
    for server, part in zip(servers, taken, strict=True):
        assert 0 <= part <= server.waiting
        if part < server.waiting:  # then no slot went to a server that held more for its requests
            for other, others in zip(servers, taken, strict=True):
                if others:
                    before = (other.running + others - 1) / other.requests
                    assert before <= (server.running + part) / server.requests


class Simulated:
    """A server without an event loop: what it holds, and what waits."""

    def __init__(self, shared: SharedServers, index: int) -> None:
        self._demand = Demand(shared, index)
        self.waiting = self.running = 0

    def do(self, operation: str, count: int) -> None:
        if operation == "ask":
            self.waiting += 1
        elif operation == "leave":
            self.waiting = max(0, self.waiting - 1)  # unseen by the others until it looks
        elif operation == "end" and self.running:
            self.running -= 1
            self._demand.give_back(1)
        if operation != "leave":
            taken = self._demand.take(count, self.waiting, max(1, self.waiting))
            self.waiting -= taken
            self.running += taken


@example(1, [(0, "ask"), (0, "ask"), (1, "ask"), (1, "leave"), (0, "end")])
@given(st.integers(1, 5), OPERATIONS)
def test_random_operations_lend_no_slot_twice_and_serve_all_servers(
    count: int, operations: list[tuple[int, str]]
) -> None:
    shared = shared_servers(4)
    servers = [Simulated(shared, index) for index in range(4)]
    for index, operation in operations:
        servers[index].do(operation, count)
        assert sum(server.running for server in servers) <= count
    for _ in range(len(operations) + 1):
        for server in 2 * servers:  # the second look sees who left before the first
            server.do("look", count)
        waiting, running = (
            sum(getattr(server, name) for server in servers) for name in ("waiting", "running")
        )
        assert running == count or not waiting  # no slot is lost
        for server in servers:
            server.do("end", count)
        assert sum(server.running for server in servers) <= count
    for server in servers:
        assert server.waiting == 0
        while server.running:
            server.do("end", count)
    assert all(Server(*shared[at : at + 4]).running == 0 for at in range(0, 16, 4))


@given(st.integers(1, 6), st.integers(2, 5))
def test_waiting_server_is_served_before_a_busy_one_takes_all_slots_again(
    count: int, servers: int
) -> None:
    """The busy server asks again in the same turn; the others look only after that."""
    shared = shared_servers(servers)
    busy, *others = (Demand(shared, index) for index in range(servers))
    held = busy.take(count, 1000, 1000)
    assert held == count
    for other in others:
        assert other.take(count, 1, 1) == 0
    served = set[int]()
    for _ in range(count + 2 * servers):
        if held:
            busy.give_back(1)
            held += busy.take(count, 1000, 1000) - 1
        for index in set(range(len(others))) - served:
            if others[index].take(count, 1, 1):
                served.add(index)
                others[index].give_back(1)
        held += busy.take(count, 1000, 1000)
    assert len(served) == len(others)


def _lend(
    shared: SharedServers, index: int, count: int, lent: "SynchronizedArray[int]", all_here: Barrier
) -> None:
    """Takes and gives back slots; keeps how many are lent, and the most there ever were."""
    rng, demand, held = random.Random(index), Demand(shared, index), 0
    all_here.wait()
    for _ in range(3000):
        if taken := demand.take(count, rng.randrange(4), 1 + rng.randrange(3)):
            with lent.get_lock():
                lent[0] += taken
                lent[1] = max(lent[1], lent[0])
            held += taken
        if back := rng.randint(0, held):
            with lent.get_lock():
                lent[0] -= back
            demand.give_back(back)
            held -= back
    with lent.get_lock():
        lent[0] -= held
    demand.give_back(held)


def test_concurrent_processes_never_hold_more_slots_than_exist() -> None:
    context, shared, count = get_context("spawn"), shared_servers(3), 5
    lent, all_here = context.Array("q", 2), context.Barrier(3)
    processes = [
        context.Process(target=_lend, args=(shared, index, count, lent, all_here))
        for index in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert lent[:] == [0, count]


async def test_late_server_waits_for_slots_of_the_first() -> None:
    shared = shared_servers(2)
    first, late = (Slots(4, Demand(shared, index)) for index in range(2))
    large = [Holder(first, "large") for _ in range(8)]
    await turns()
    assert granted(large) == 4  # alone, it has all of them
    small = [Holder(late, "small") for _ in range(3)]
    await turns()
    assert granted(small) == 0
    for ended in range(1, 3):
        large[ended].done.set()
        await until(small, ended)
        assert granted(large) == 4  # those that ended were not followed by its own
    for one in small[:2]:
        one.done.set()  # it has had its part; its third candidate follows
    await until(small, 3)
    await until(large, 5)
    for one in [*small, *large]:
        one.done.set()
    await asyncio.gather(*(one.task for one in [*small, *large]))
    again = [Holder(late, "last") for _ in range(4)]  # all of them are free again
    await until(again, 4)
    for one in again:
        one.done.set()
    await asyncio.gather(*(one.task for one in again))


async def test_share_and_free_slots_count_those_of_other_servers() -> None:
    shared = shared_servers(2)
    first, second = (Slots(8, Demand(shared, index)) for index in range(2))
    holders = [Holder(first, "a") for _ in range(3)]
    await turns()
    assert (first.share("a"), second.share("b")) == (8, 5)
    assert [second.available(count) for count in (5, 6)] == [True, False]
    holders += [Holder(first, "a") for _ in range(5)]
    await turns()
    assert (first.share("a"), second.share("b")) == (8, 4)
    for holder in holders:
        holder.done.set()
    await asyncio.gather(*(holder.task for holder in holders))


async def test_with_one_slot_two_servers_take_turns() -> None:
    shared, order = shared_servers(2), list[int]()

    async def one(slots: Slots, index: int) -> None:
        async with slots.slot("owner") as granted:
            assert granted
            order.append(index)
            await asyncio.sleep(0)

    servers = [Slots(1, Demand(shared, index)) for index in range(2)]
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(*(one(servers[index], index) for index in (0, 1) for _ in range(10)))
    assert order == [0, 1] * 10


@pytest.mark.parametrize("seed", range(20))
async def test_leaving_clients_lose_no_slot_of_any_server(seed: int) -> None:
    rng, shared, running, most = random.Random(seed), shared_servers(3), Counter[int](), 0
    servers = [Slots(4, Demand(shared, index)) for index in range(3)]

    async def one(index: int) -> None:
        nonlocal most
        async with servers[index].slot(rng.choice("abc"), rng.choice([None, None, 0.002])) as got:
            if got:
                running[index] += 1
                most = max(most, running.total())
                try:
                    await asyncio.sleep(rng.random() * 0.002)
                finally:
                    running[index] -= 1

    tasks = [asyncio.create_task(one(rng.randrange(3))) for _ in range(60)]
    for task in rng.sample(tasks, 20):
        await asyncio.sleep(rng.random() * 0.001)
        task.cancel()
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert 0 < most <= 4
    holders = [Holder(servers[seed % 3], "z") for _ in range(5)]
    await until(holders, 4)
    await turns()
    assert granted(holders) == 4
    for holder in holders:
        holder.done.set()
    await asyncio.gather(*(holder.task for holder in holders))


def granted(holders: list[Holder]) -> int:
    """Number of holders that got a slot, including those that have ended."""
    return sum(holder.granted is True for holder in holders)


async def until(holders: list[Holder], count: int) -> None:
    """Waits until ``count`` holders got a slot."""
    for _ in range(60_000):
        if granted(holders) >= count:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{granted(holders)} of {count} got a slot")
