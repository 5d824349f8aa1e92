"""The wire form of what the server asks of the worker."""

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve.shared_table import Ticket
from cdserve.worker.request import REQUEST_KEY, DrawPlace, FirstTokenDraws, RowTilt, WorkerRequest

COUNTS = st.integers(0, 2**40)
WEIGHTS = st.floats(-1e6, 1e6)
NAMES = st.text(min_size=1, max_size=8)
TICKETS = st.none() | st.builds(Ticket, NAMES, COUNTS, COUNTS, st.integers(1, 1024))
TILTS = st.builds(
    RowTilt, st.dictionaries(st.integers(0, 99), WEIGHTS), st.none() | st.integers(1, 10**6)
)
BUDGETS = st.builds(
    lambda path_kl, nats: {"path_kl": path_kl, "kl_budget": None if path_kl is None else nats},
    TICKETS,
    st.none() | st.floats(0, 1e6),
)
STATISTICS = st.builds("{}{}".format, NAMES, st.sampled_from(["", ".self_certainty", ".top_20"]))
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "values": TICKETS,
    "value_length": st.none() | COUNTS,
    "value_every": st.none() | COUNTS,
    "drawn_values": st.booleans(),
    "first_tokens": st.none()
    | st.builds(FirstTokenDraws, TICKETS.filter(bool), st.lists(COUNTS).map(tuple)),
    "first_drawn": st.booleans(),
    "response_start": st.none() | COUNTS,
    "tilt": st.none() | TILTS,
    "mix": st.none() | st.dictionaries(NAMES, WEIGHTS),
    "token_stats": TICKETS,
    "token_stats_start": st.none() | COUNTS,
    "token_stats_names": st.lists(STATISTICS, unique=True).map(tuple),
    "place": st.none() | st.builds(DrawPlace, NAMES, COUNTS, COUNTS),
}
REQUESTS = st.builds(lambda path, **others: WorkerRequest(**path, **others), BUDGETS, **FIELDS)


@given(request=REQUESTS)
def test_request_survives_its_wire_form(request: WorkerRequest) -> None:
    wire = json.loads(json.dumps(request.to_wire()))
    assert WorkerRequest.from_wire(wire) == request


def test_examples_have_a_strategy_for_every_field() -> None:
    # A field without one would survive a wire form that forgets it.
    generated = {*FIELDS, "path_kl", "kl_budget"}
    assert generated == {field.name for field in fields(WorkerRequest)}


@given(request=REQUESTS)
def test_wire_form_has_no_field_with_its_default(request: WorkerRequest) -> None:
    defaults = WorkerRequest()
    changed = {f.name for f in fields(request) if getattr(request, f.name) != f.default}
    assert request.to_wire().keys() == changed
    assert defaults.to_wire() == {}


@given(request=REQUESTS)
def test_extra_args_keep_what_the_client_gave(request: WorkerRequest) -> None:
    extra_args = request.added_to({"mine": 1})
    assert extra_args.keys() == {"mine", REQUEST_KEY}
    assert WorkerRequest.of(extra_args) == request


def test_extra_args_without_a_request_have_none() -> None:
    assert WorkerRequest.of(None) is None
    assert WorkerRequest.of({"mine": 1}) is None


@given(request=REQUESTS)
def test_members_are_the_models_of_mix_and_statistics_without_the_base(
    request: WorkerRequest,
) -> None:
    models = {name.split(".")[0] for name in request.token_stats_names}
    assert request.members == {*(request.mix or {}), *models} - {"base"}


def test_kl_budget_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_budget needs path_kl"):
        WorkerRequest(kl_budget=1.0)
