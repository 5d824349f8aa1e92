"""The KL that the server reads back of a steered request."""

from collections.abc import Iterator

import numpy as np
import pytest

from cdserve.engine.steering import Paths
from cdserve.errors import ScoringError
from cdserve.shared_table import TableView, Ticket


@pytest.fixture
def paths() -> Iterator[Paths]:
    paths = Paths()
    yield paths
    paths.close()


def draw(ticket: Ticket, lengths: range) -> None:
    """What the worker writes as it draws: a path of 0.5 nats a token, every fourth unsteered."""
    view = TableView.open(ticket.path, 2)
    for length in lengths:
        view.write(
            np.array([ticket.offset + length % ticket.length]),
            np.array([ticket.number]),
            np.array([length]),
            np.array([[length / 2, length // 4]], np.float32),
        )


def test_the_kl_of_a_prefix_is_read_while_the_engine_draws_on(paths: Paths) -> None:
    """An output that arrives late, as on a busy machine, finds that of a longer prefix."""
    with paths.ticket() as ticket:
        draw(ticket, range(3, 9))
        assert paths.read(ticket, 5) == (2.5, 1)
        draw(ticket, range(9, 100))
        kl, unsteered = paths.read(ticket, 5)
        assert 2.5 <= kl <= 50
        assert unsteered == kl // 2
        assert paths.read(ticket, 99) == (49.5, 24)


def test_a_request_without_a_reported_kl_is_an_error(paths: Paths) -> None:
    with paths.ticket() as ticket:
        draw(ticket, range(3, 9))
        with pytest.raises(ScoringError, match="reported no KL"):
            paths.read(ticket, 9)
