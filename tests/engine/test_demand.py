"""Slots that several API servers share: max-min fair, all in use, nobody forgotten."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from cdserve.engine.demand import Demand, evenly
from cdserve.engine.slots import Slots

from .test_slots import Holder, turns

SERVERS = st.lists(
    st.integers(0, 40).flatmap(
        lambda wanted: st.tuples(st.just(wanted), st.integers(min(wanted, 1), max(wanted, 1)))
    ),
    min_size=1,
    max_size=6,
)


@given(st.integers(1, 64), SERVERS)
def test_shares_are_max_min_fair(count: int, servers: list[tuple[int, int]]) -> None:
    candidates, requests = map(list, zip(*servers, strict=True))
    shares = evenly(count, candidates, requests)
    assert sum(shares) == min(count, sum(candidates))
    for i, share in enumerate(shares):
        assert 0 <= share <= candidates[i]
        if share < candidates[i]:  # then no server has more for each of its requests
            for other, wanted in zip(shares, requests, strict=True):
                if other:
                    assert (other - 1) * requests[i] <= (share + 1) * wanted


async def test_one_server_has_all_slots_while_it_is_alone() -> None:
    wanted = [0] * 4
    alone, late = (Slots(4, Demand(wanted, i)) for i in range(2))
    large = [Holder(alone, "large") for _ in range(8)]
    await turns()
    assert sum(one.granted is True for one in large) == 4
    small = [Holder(late, "small") for _ in range(2)]
    await turns()
    assert all(one.granted for one in small)  # at once: its part is not in doubt
    for one in large[:2]:
        one.done.set()
    await turns()
    assert sum(one.granted is True for one in large) == 4  # those that end are not followed
    for one in small:
        one.done.set()
    await asyncio.gather(*(one.task for one in small))
    for _ in range(1000):
        if sum(one.granted is True for one in large) == 6:
            break
        await asyncio.sleep(0.001)
    else:
        raise AssertionError("the first server has not got all slots back")
    for one in large:
        one.done.set()
    await asyncio.gather(*(one.task for one in large))
    assert wanted == [0] * 4
