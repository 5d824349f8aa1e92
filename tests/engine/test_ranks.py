"""A request's candidates go to one data-parallel rank, and requests to all of them."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from cdserve.engine.ranks import Ranks


def test_request_goes_to_the_rank_with_the_fewest_candidates() -> None:
    ranks = Ranks(3)
    with ExitStack() as stack:
        made = [
            stack.enter_context(ranks.held({"priority": 1}, candidates))
            for candidates in (8, 1, 2, 4, 1, 9)
        ]
        assert [options["data_parallel_rank"] for options in made] == [0, 1, 2, 1, 2, 2]
        assert all(options["priority"] == 1 for options in made)


def test_ties_go_to_the_least_recently_used_rank() -> None:
    ranks, made = Ranks(3), []
    for _ in range(4):  # one after the other: all are given back
        with ranks.held({}, 1) as options:
            made.append(options["data_parallel_rank"])
    assert made == [0, 1, 2, 0]


def test_rank_named_by_the_client_is_kept() -> None:
    with Ranks(2).held({"data_parallel_rank": 1}, 4) as options:
        assert options == {"data_parallel_rank": 1}


def test_single_rank_is_not_named() -> None:
    with Ranks(1).held({}, 4) as options:
        assert options == {}


@pytest.mark.parametrize(("local_only", "count"), [(False, 4), (True, 2)])
def test_number_of_ranks_is_read_from_the_parallel_config(local_only: bool, count: int) -> None:
    config = SimpleNamespace(
        local_engines_only=local_only, data_parallel_size=4, data_parallel_size_local=2
    )
    with ExitStack() as stack:
        ranks = Ranks.of(config)
        made = [stack.enter_context(ranks.held({}, 1)) for _ in range(count)]
        assert [options["data_parallel_rank"] for options in made] == list(range(count))
