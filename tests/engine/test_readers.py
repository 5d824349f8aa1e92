"""Path KL read back from the table that the worker writes."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import numpy as np
import pytest

from cdserve.engine import readers
from cdserve.engine.prefill import TokenSequence
from cdserve.engine.readers import PathKLReader, ValueReader
from cdserve.errors import ScoringError
from cdserve.shared_table import TableView, Ticket


@pytest.fixture
def reader() -> Iterator[PathKLReader]:
    reader = PathKLReader()
    yield reader
    reader.close()


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


def test_path_kl_of_a_prefix_is_read_while_the_engine_draws_on(reader: PathKLReader) -> None:
    """An output that arrives late, as on a busy machine, finds that of a longer prefix."""
    with reader.ticket() as ticket:
        draw(ticket, range(3, 9))
        assert reader.read(ticket, 5) == (2.5, 1)
        draw(ticket, range(9, 100))
        kl, unsteered = reader.read(ticket, 5)
        assert 2.5 <= kl <= 50
        assert unsteered == kl // 2
        assert reader.read(ticket, 99) == (49.5, 24)


def test_missing_path_kl_raises_a_scoring_error(reader: PathKLReader) -> None:
    with reader.ticket() as ticket:
        draw(ticket, range(3, 9))
        with pytest.raises(ScoringError, match="reported no KL"):
            reader.read(ticket, 9)


@pytest.mark.parametrize("every", [1, 2, 15, 16, 240, 30030])
def test_repeated_values_are_kept_while_the_engine_draws_on(every: int) -> None:
    with closing(ValueReader(cast("Any", None), {"a": 0}, 2)) as reader:
        with reader.repeated(every) as ticket:
            view = TableView.open(ticket.path, 2)
            lengths = [7 + every * i for i in range(5)]
            for length in lengths:
                row = np.array([ticket.offset + length % ticket.length])
                values = np.array([[length, 0]], np.float32)
                view.write(row, np.array([ticket.number]), np.array([length]), values)
            kept = [reader.read(ticket, length) for length in lengths]
        if every < 30030:  # the least number that has a factor in common with 2 to 16
            assert kept == [{"a": length} for length in lengths]
        assert kept[-1] == {"a": lengths[-1]}


async def test_missing_value_is_named_with_its_reward_and_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def write_nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(readers, "prefill", write_nothing)
    sequence, engine = TokenSequence(token_ids=[1, 2, 3], start=1), cast(Any, None)
    with closing(ValueReader(engine, {"safety": 0}, 1)) as values:
        with pytest.raises(ScoringError, match="no value of safety for the prefix of 3 tokens"):
            await values.last(sequence, "a")
        with pytest.raises(ScoringError, match="no value of safety for the prefix of 2 tokens"):
            await values.every(sequence, "b")
