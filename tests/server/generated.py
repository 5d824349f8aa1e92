"""Request bodies made at random: mostly near what is accepted, some far from it."""

import json
from typing import Any

from hypothesis import strategies as st

from .wire import PROMPT

HUGE = 10**30
REWARDS = ["sentiment", "brevity", "sentiment_gold", "fluent", "dpo", "careful", "json", "unknown"]
MEMBERS = ["base", "tuned", "ref", "twin", "nobody"]


def _nested(depth: int) -> Any:
    made: Any = 1
    for _ in range(depth):
        made = [made] if depth % 2 else {"method": made}
    return made


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, HUGE, -HUGE, 1e308, -1e308, 5e-324, float("nan"), float("inf")]),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "\x00", "a" * 10_000, "Ünïcödé 🎬", "alignment.k"]),
    st.lists(st.integers(-2, 5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(-1, 3), max_size=2),
    st.sampled_from([1, 2, 50, 200]).map(_nested),
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is accepted, or one time in eight anything."""
    return st.integers(0, 7).flatmap(lambda i: odd if i == 0 else usual)


def fields(
    required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    """An object of them, now and then with a key more."""
    made = st.fixed_dictionaries(
        {name: mostly(value) for name, value in required.items()},
        optional={name: mostly(value) for name, value in optional.items()},
    )
    extra = st.dictionaries(st.text(max_size=6), odd, max_size=1)
    return st.tuples(made, st.integers(0, 9), extra).map(
        lambda drawn: {**drawn[0], **(drawn[2] if drawn[1] == 0 else {})}
    )


numbers = st.floats(-5, 5, allow_nan=False)
positive = st.floats(1e-3, 10)
weights = st.dictionaries(st.sampled_from(REWARDS), numbers, min_size=1, max_size=3)
shares = st.dictionaries(st.sampled_from(MEMBERS), st.floats(0, 2), min_size=1, max_size=3)
recipes = st.one_of(
    fields(
        {"kind": st.just("mixture"), "weights": shares},
        {"reference": st.sampled_from(MEMBERS)},
    ),
    fields({"kind": st.just("rescale"), "tuned": st.just("tuned"), "ratio": positive}, {}),
    fields(
        {"kind": st.just("proxy"), "tuned": st.just("tuned"), "reference": st.just("ref")},
        {"alpha": numbers},
    ),
)
mixes = st.one_of(
    fields({"method": st.just("logit_mixing"), "weights": shares}, {}),
    fields({"method": st.just("logit_mixing"), "recipe": recipes}, {}),
)
tilts = fields(
    {"method": st.just("tokenwise_cd"), "beta": positive},
    {"top_k": st.integers(1, 50), "rewards": st.just({"sentiment": 1.0}), "proposal": mixes},
)
selections = st.one_of(
    st.just("argmax"),
    positive.map(lambda x: {"softmax": x}),
    positive.map(lambda x: {"pessimistic": x}),
    positive.map(lambda x: {"worst_case": {"lambda": x}}),
)
whole_selections = st.one_of(
    selections,
    fields(
        {"extract": st.sampled_from(["last_number", "boxed", r"(\w+)\W*$"])},
        {"weights": st.one_of(st.just("count"), positive.map(lambda x: {"softmax": x}))},
    ).map(lambda vote: {"vote": vote}),
    fields({}, {"beta": positive}).map(lambda mbr: {"mbr": mbr}),
)
"""Selections of best-of-n."""
shared = {
    "rewards": weights,
    "report": st.sampled_from(["none", "summary", "trace"]),
    "deadline_ms": st.integers(1, 200),
}
searching = {**shared, "proposal": st.one_of(tilts, mixes)}
budgets = {"kl_budget": st.floats(0, 5), "selection": selections}
few = st.integers(1, 3)
sparing = {
    "stop": st.one_of(
        fields({"gain_per_token": st.floats(0, 0.1)}, {}),
        fields({"threshold": numbers}, {}),
        fields({"certain": st.floats(0.6, 1)}, {}),
    ),
    "selection": whole_selections,
    "at_once": few,
    "race": fields({"delta": st.floats(0.001, 0.4)}, {"every": st.integers(1, 8)}),
    "threshold": fields(
        {"score": numbers}, {"on_reject": st.sampled_from(["best", "refuse", "error"])}
    ),
}
"""Fields of best-of-n; some exclude each other."""
policies = st.one_of(
    st.just({"method": "none"}),
    st.sampled_from(["safe", "best-of-4", "away", "nothing"]),
    fields({"method": st.just("best_of_n"), "n": few}, {**searching, **budgets, **sparing}),
    fields(
        {
            "method": st.just("blockwise_cd"),
            "k": st.one_of(few, st.lists(few, min_size=1, max_size=3)),
            "m": st.integers(1, 8),
        },
        {
            **{**searching, **budgets, "beam_width": st.integers(1, 2)},
            "continuation_gain": st.one_of(st.just("auto"), st.floats(0, 2)),
        },
    ),
    fields({"method": st.just("best_of_poisson"), "mu": st.floats(0, 1)}, searching),
    fields(
        {
            "method": st.just("rejection"),
            "eta": positive,
            "r_max": st.just(1e3),
            "max_draws": few,
        },
        searching,
    ),
    fields(
        {"method": st.just("cards"), "m": st.integers(1, 8), "r_star": numbers},
        {**searching, "k": few, "max_draws": st.just(6), "alpha": st.floats(0, 1)},
    ),
    fields(
        {"method": st.just("speculative_rejection"), "n": few, "m": st.integers(1, 8)},
        {**searching, "alpha": st.floats(0, 0.9)},
    ),
    st.tuples(tilts, fields({}, shared)).map(lambda two: two[1] | two[0]),
    st.tuples(mixes, fields({}, shared)).map(lambda two: two[1] | two[0]),
    odd,
)
sampling = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "seed": st.integers(0, 2**40),
    "stop": st.sampled_from([" ", ".", ["the", "."], "\n"]),
    "min_tokens": st.integers(0, 4),
    "logprobs": st.integers(0, 3),
    "n": st.integers(1, 2),
    "echo": st.booleans(),
    "ignore_eos": st.booleans(),
    "presence_penalty": st.floats(-1, 1),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "7", "x"]), numbers, max_size=2),
}
prompts = st.one_of(
    st.sampled_from([PROMPT, "", " ", "word " * 3000, [], [1], [1, 2, 3], [10**9], [[1], [2]]]),
    st.text(min_size=1, max_size=30),
)
bodies = fields(
    {
        "model": st.sampled_from(["demo"] * 8 + ["demo:safe", "other"]),
        "prompt": prompts,
        "max_tokens": st.integers(1, 12),
        "alignment": policies,
    },
    sampling,
)


def encoded(body: Any) -> bytes:
    """As JSON, with what JSON has no word for as Python writes it (NaN, Infinity)."""
    return json.dumps(body).encode()
