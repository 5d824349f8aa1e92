"""Validation of policies: every error names the field, the value and what is accepted."""

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.decoders import BestOfNPolicy, BlockwiseCDPolicy, load
from cdserve.errors import PolicyError
from cdserve.policy import Policy, PolicySampling, SoftmaxSelection, parse
from tests.schemas import pydantics_words, wrong_fields, wrong_values

METHODS = {name: decoder.policy for name, decoder in load([]).items()}
SAFE = BlockwiseCDPolicy(method="blockwise_cd", k=8, m=32)
PRESETS: dict[str, Policy] = {"safe": SAFE, "best": BestOfNPolicy(method="best_of_n", n=4)}
LONGEST_MESSAGE = 1000
LONGEST_PARAM = 200


def policy_error(sent: object) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        parse(sent, METHODS, PRESETS)
    assert_fits_a_response(caught.value)
    return caught.value


def assert_fits_a_response(error: PolicyError) -> None:
    """Asserts that message and path are short and valid UTF-8."""
    message_size, param_size = len(str(error).encode()), len(error.param.encode())
    assert message_size < LONGEST_MESSAGE
    assert param_size < LONGEST_PARAM
    assert error.param.split(".")[0] == "alignment"


def best_of(**fields: object) -> dict[str, object]:
    return {"method": "best_of_n", "n": 2, **fields}


ACCEPTED = (
    "accepted here: at_once, deadline_ms, kl_budget, method, n, proposal, race, report, rewards, "
    "sampling, selection, stop, threshold"
)


class TestAccepted:
    @pytest.mark.parametrize("sent", [None, {"method": "none"}])
    def test_parse_returns_none_for_plain_decoding(self, sent: object) -> None:
        assert parse(sent, METHODS, PRESETS) is None

    def test_parse_returns_the_named_preset(self) -> None:
        assert parse("safe", METHODS, PRESETS) is SAFE

    def test_parse_reads_all_fields_of_best_of_n(self) -> None:
        sent = best_of(rewards={"a": 1, "b": -0.5}, selection={"softmax": 0.1}, report="trace")
        assert parse(sent, METHODS, PRESETS) == BestOfNPolicy(
            method="best_of_n",
            n=2,
            rewards={"a": 1.0, "b": -0.5},
            selection=SoftmaxSelection(softmax=0.1),
            report="trace",
        )

    def test_dumped_policy_has_the_form_that_was_sent(self) -> None:
        selection = {"worst_case": {"lambda": 2.0}}
        sent = {"method": "blockwise_cd", "k": [4, 2], "m": 8, "selection": selection}
        policy = parse(sent, METHODS, PRESETS)
        assert policy is not None
        expected = {
            **{**sent, "beam_width": 1, "subtrees": 1},
            **{"continuation_gain": 0.0, "report": "summary"},
        }
        assert policy.model_dump(exclude_none=True) == expected
        assert policy.width == 4

    def test_parse_fills_in_defaults(self) -> None:
        policy = parse({"method": "blockwise_cd", "k": 8, "m": 32}, METHODS, PRESETS)
        assert policy == SAFE
        assert (SAFE.rewards, SAFE.selection, SAFE.report) == (None, "argmax", "summary")

    @pytest.mark.parametrize("gain", ["auto", 0, 0.25, 3])
    def test_continuation_gain_is_auto_or_a_number(self, gain: float | str) -> None:
        sent = {"method": "blockwise_cd", "k": 8, "m": 32, "continuation_gain": gain}
        policy = parse(sent, METHODS, PRESETS)
        assert isinstance(policy, BlockwiseCDPolicy)
        assert policy.continuation_gain == gain
        assert policy.outlook_field == ("continuation_gain" if gain == "auto" else None)

    def test_empty_sampling_has_temperature_one_and_no_truncation(self) -> None:
        policy = parse(best_of(sampling={}), METHODS, PRESETS)
        assert isinstance(policy, BestOfNPolicy)
        assert policy.sampling == PolicySampling(temperature=1, top_p=1, top_k=None, min_p=0)

    def test_width_is_the_number_of_candidates_over_all_draws(self) -> None:
        assert SAFE.width == 8
        assert PRESETS["best"].width == 4
        cards = parse({"method": "cards", "m": 8, "r_star": 1, "k": 4}, METHODS, PRESETS)
        assert cards is not None
        assert cards.width == 20


class TestInvalid:
    @pytest.mark.parametrize("sent", [3, 2.5, True, [], ["safe"], math.nan])
    def test_value_that_is_neither_name_nor_object_is_rejected(self, sent: object) -> None:
        error = policy_error(sent)
        assert error.param == "alignment"
        assert repr(sent) in str(error)

    @pytest.mark.parametrize("sent", ["unsafe", "", "none", "Safe"])
    def test_unknown_preset_is_rejected_with_the_known_ones(self, sent: str) -> None:
        error = policy_error(sent)
        assert error.param == "alignment"
        assert str(error) == f"alignment names the preset {sent!r}; this server has 'safe', 'best'"

    def test_unknown_preset_is_rejected_by_a_server_without_presets(self) -> None:
        with pytest.raises(PolicyError, match="this server has none"):
            parse("safe", METHODS, {})

    @pytest.mark.parametrize("sent", [{}, {"method": "best-of-n"}, {"method": ["none"]}, {"n": 2}])
    def test_unknown_method_is_rejected_with_the_known_ones(self, sent: dict[str, object]) -> None:
        error = policy_error(sent)
        assert error.param == "alignment.method"
        assert repr(sent.get("method")) in str(error)
        assert "'none', 'best_of_n', 'best_of_poisson', 'blockwise_cd'" in str(error)

    @pytest.mark.parametrize("value", [0, -1, "x", 2.5, None, [2], {}, math.nan, math.inf, 1e400])
    def test_invalid_n_is_rejected(self, value: object) -> None:
        error = policy_error({"method": "best_of_n", "n": value})
        assert error.param == "alignment.n"
        assert f"alignment.n is {value!r}; " in str(error)

    @pytest.mark.parametrize("value", [-0.1, "much", None, True, [1.0], math.nan, 1e13])
    def test_invalid_continuation_gain_is_rejected(self, value: object) -> None:
        error = policy_error({"method": "blockwise_cd", "k": 2, "m": 2, "continuation_gain": value})
        assert error.param == "alignment.continuation_gain"
        assert f"alignment.continuation_gain is {value!r}; it takes 'auto' or a number" in str(
            error
        )

    @pytest.mark.parametrize(
        "selection", [{"softmax": 0.5}, {"pessimistic": 1.0}, {"worst_case": {"lambda": 1.0}}]
    )
    def test_automatic_continuation_gain_requires_argmax(self, selection: object) -> None:
        sent = {"method": "blockwise_cd", "k": 2, "m": 2, "selection": selection}
        assert parse({**sent, "continuation_gain": 0.5}, METHODS, PRESETS) is not None
        error = policy_error({**sent, "continuation_gain": "auto"})
        assert str(error) == (
            "alignment.continuation_gain is 'auto'; it must be a number unless selection is "
            "'argmax'"
        )

    @pytest.mark.parametrize(
        ("k", "param"),
        [
            ([], "k"),
            ([2, 0], "k.1"),
            (["x"], "k.0"),
            ([[2]], "k.0"),
            ([1] * 1025, "k"),
            (True, "k"),
            (None, "k"),
            ({}, "k"),
            ("2", "k"),
        ],
    )
    def test_invalid_schedule_of_k_is_rejected(self, k: object, param: str) -> None:
        error = policy_error({"method": "blockwise_cd", "k": k, "m": 2})
        assert error.param == f"alignment.{param}"
        assert f"alignment.{param} is " in str(error)

    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"mu": -1}, "mu", "at least 0"),
            ({"mu": 1e5}, "mu", "at most 10000"),
            ({"mu": math.nan}, "mu", "nan"),
            (
                {"mu": 1, "n": 2},
                "n",
                "accepted here: deadline_ms, method, mu, proposal, report, rewards, sampling",
            ),
            ({}, "mu", "missing"),
        ],
    )
    def test_invalid_best_of_poisson_policy_is_rejected(
        self, fields: dict[str, object], param: str, message: str
    ) -> None:
        error = policy_error({"method": "best_of_poisson", **fields})
        assert error.param == f"alignment.{param}"
        assert message in str(error)

    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"eta": 0}, "eta", "at least 1e-06"),
            ({"r_max": math.inf}, "r_max", "inf"),
            ({"max_draws": 0}, "max_draws", "at least 1"),
            ({"max_draws": 2.5}, "max_draws", "integer"),
            ({"selection": "argmax"}, "selection", "not known"),
        ],
    )
    def test_invalid_rejection_policy_is_rejected(
        self, fields: dict[str, object], param: str, message: str
    ) -> None:
        sent = {"method": "rejection", "eta": 1, "r_max": 1, "max_draws": 8, **fields}
        error = policy_error(sent)
        assert error.param == f"alignment.{param}"
        assert message in str(error)

    @pytest.mark.parametrize("field", ["k", "m"])
    def test_zero_block_count_or_length_is_rejected(self, field: str) -> None:
        error = policy_error({"method": "blockwise_cd", "k": 2, "m": 2, field: 0})
        assert error.param == f"alignment.{field}"
        assert f"alignment.{field} is 0" in str(error)
        assert "at least 1" in str(error)

    def test_missing_field_is_rejected(self) -> None:
        error = policy_error({"method": "blockwise_cd", "k": 2})
        assert error.param == "alignment.m"
        assert "alignment.m is missing" in str(error)

    @pytest.mark.parametrize("field", ["k", "N", "", "kl", "with space", "a.b"])
    def test_unknown_field_is_rejected_with_the_known_ones(self, field: str) -> None:
        error = policy_error(best_of(**{field: 1}))
        assert error.param == f"alignment.{field}"
        assert ACCEPTED in str(error)

    @pytest.mark.parametrize("field", ["Softmax", "SoftmaxSelection", "literal[x"])
    def test_unknown_field_named_like_a_union_branch_is_rejected(self, field: str) -> None:
        error = policy_error(best_of(**{field: 1}))
        assert error.param == f"alignment.{field}"
        assert ACCEPTED in str(error)

    def test_reward_named_like_a_union_branch_keeps_its_path(self) -> None:
        assert policy_error(best_of(rewards={"Softmax": "x"})).param == "alignment.rewards.Softmax"

    def test_method_none_rejects_other_fields(self) -> None:
        error = policy_error({"method": "none", "n": 2})
        assert error.param == "alignment.n"
        assert "'none'" in str(error)

    @pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, "x", None, [1], {}])
    def test_invalid_weight_is_rejected(self, weight: object) -> None:
        error = policy_error(best_of(rewards={"a": 1, "b": weight}))
        assert error.param == "alignment.rewards.b"
        assert f"alignment.rewards.b is {weight!r}; " in str(error)

    @pytest.mark.parametrize("rewards", [{}, [], "a", 1, {str(i): 1 for i in range(65)}])
    def test_invalid_rewards_object_is_rejected(self, rewards: object) -> None:
        assert policy_error(best_of(rewards=rewards)).param == "alignment.rewards"

    @pytest.mark.parametrize(
        "selection",
        [
            "max",
            "softmax",
            1,
            None,
            {},
            {"softmax": 0},
            {"softmax": -1},
            {"softmax": math.nan},
            {"softmax": math.inf},
            {"softmax": "x"},
            {"softmax": 1, "temperature": 2},
            {"pessimistic": 0},
            {"worst_case": 1},
            {"worst_case": {}},
            {"worst_case": {"lambda": 0}},
            {"worst_case": {"lambda": 1e7}},
            {"worst_case": {"lambda": math.nan}},
            {"worst_case": {"strength": 1}},
            {"worst_case": {"lambda": 1}, "softmax": 1},
        ],
    )
    def test_invalid_selection_is_rejected(self, selection: object) -> None:
        error = policy_error(best_of(selection=selection))
        assert error.param == "alignment.selection"
        assert f"alignment.selection is {selection!r}" in str(error)
        assert (
            "'argmax', {'softmax': λ}, {'pessimistic': β} or {'worst_case': {'lambda': λ}}"
            in str(error)
        )
        assert "with λ and β > 0" in str(error)

    def test_invalid_report_is_rejected(self) -> None:
        error = policy_error(best_of(report="all"))
        assert error.param == "alignment.report"
        assert all(repr(known) in str(error) for known in ("all", "none", "summary", "trace"))


@pytest.mark.parametrize("method", METHODS)
class TestWords:
    """Messages are in the words of the API's documentation, not in pydantic's."""

    def test_errors_of_wrong_values_have_none_of_pydantics_words(self, method: str) -> None:
        for sent in wrong_values(METHODS[method]):
            self.check(sent)

    def test_errors_of_missing_and_unknown_fields_have_none_of_pydantics_words(
        self, method: str
    ) -> None:
        for sent in wrong_fields(METHODS[method]):
            self.check(sent)

    def check(self, sent: dict[str, Any]) -> None:
        try:
            parse(sent, METHODS, PRESETS)
        except PolicyError as error:
            message = str(error)
        else:
            return
        assert pydantics_words(message) == [], message


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"method": "best_of_n"}, "n is missing; it takes an integer of at least 1"),
        (best_of(n=0), "n is 0; it must be at least 1"),
        (best_of(n="2"), "n is '2'; it must be an integer"),
        (best_of(rewards={}), "rewards is {}; it must have at least 1 item"),
        (best_of(rewards={"a": 1e7}), "rewards.a is 10000000.0; it must be at most 1000000"),
        (
            best_of(proposal={"method": "x"}),
            "proposal.method is 'x'; it takes 'logit_mixing' or 'tokenwise_cd'",
        ),
        (
            best_of(proposal={"beta": 1}),
            "proposal.method is missing; it takes 'logit_mixing' or 'tokenwise_cd'",
        ),
        (best_of(proposal=3), "proposal is 3; it must be an object"),
        (
            best_of(proposal={"method": "logit_mixing", "recipe": {"kind": "x"}}),
            "proposal.recipe.kind is 'x'; it takes 'mixture', 'proxy' or 'rescale'",
        ),
        (
            best_of(proposal={"method": "tokenwise_cd"}),
            "proposal.beta is missing; it takes a number of at least 1e-06",
        ),
        (
            {"method": "blockwise_cd", "m": 1},
            "k is missing; it takes an integer of at least 1 or a list of 1 to 1024 items, each an "
            "integer of at least 1",
        ),
        (
            {"method": "blockwise_cd", "m": 1, "k": 2, "beam_width": 2, "kl_budget": 1},
            "beam_width is 2; it must be 1 with a kl_budget",
        ),
        (best_of(report="all"), "report is 'all'; it must be 'none', 'summary', 'trace' or 'live'"),
        (best_of(sampling=1), "sampling is 1; it must be an object"),
        (
            best_of(sampling={"temperature": 0}),
            "sampling.temperature is 0; it must be at least 0.01",
        ),
        (
            best_of(sampling={"temperature": 3}),
            "sampling.temperature is 3; it must be at most 2",
        ),
        (best_of(sampling={"top_p": 0}), "sampling.top_p is 0; it must be above 0"),
        (best_of(sampling={"top_k": 1}), "sampling.top_k is 1; it must be at least 2"),
        (best_of(sampling={"min_p": 1}), "sampling.min_p is 1; it must be below 1"),
        (
            best_of(sampling={"seed": 1}),
            "sampling.seed is not known; accepted here: min_p, temperature, top_k, top_p",
        ),
        (
            {"method": "tokenwise_cd", "beta": 1, "sampling": {}},
            "sampling is not known; accepted here: beta, deadline_ms, ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_error_says_what_the_field_takes(sent: dict[str, Any], message: str) -> None:
    assert str(policy_error(sent)).startswith(f"alignment.{message}")


class TestHostile:
    """Error messages are short and valid UTF-8, whatever the client sends."""

    HUGE = "x" * 1_000_000

    @pytest.mark.parametrize(
        "sent",
        [
            HUGE,
            [HUGE],
            {"method": HUGE},
            {"method": "none", HUGE: 1},
            {"method": "best_of_n", "n": HUGE},
            best_of(report=HUGE),
            best_of(selection=HUGE),
            best_of(selection={"softmax": HUGE}),
            best_of(selection={HUGE: 1}),
            best_of(rewards={"a": HUGE}),
            best_of(rewards={HUGE: "x"}),
            best_of(**{HUGE: 1}),
        ],
        ids=range(12),
    )
    def test_error_for_huge_strings_is_short(self, sent: object) -> None:
        policy_error(sent)

    @pytest.mark.parametrize("wrap", [lambda x: x, lambda x: best_of(n=x), lambda x: {"method": x}])
    def test_error_for_deep_nesting_is_short(self, wrap: Any) -> None:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        policy_error(wrap(deep))

    @pytest.mark.parametrize(
        "sent",
        [
            "\ud800",
            {"method": "\ud800"},
            {"method": "none", "\ud800": 1},
            best_of(n="\ud800"),
            best_of(report="\ud800"),
            best_of(**{"\ud800": 1}),
            best_of(rewards={"\ud800": "x"}),
        ],
        ids=range(7),
    )
    def test_error_for_lone_surrogates_is_valid_utf8(self, sent: object) -> None:
        policy_error(sent)


@dataclass
class Small:
    max_n: int = 8
    max_k: int = 4
    max_candidate_tokens: int = 100


class TestLimits:
    @pytest.mark.parametrize("n", [1, 8])
    def test_n_within_the_limit_is_accepted(self, n: int) -> None:
        BestOfNPolicy(method="best_of_n", n=n).check_limits(Small())

    def test_n_above_the_limit_is_rejected(self) -> None:
        with pytest.raises(PolicyError, match=r"alignment\.n is 9; .*1 to 8") as caught:
            BestOfNPolicy(method="best_of_n", n=9).check_limits(Small())
        assert caught.value.param == "alignment.n"

    def test_k_above_the_limit_is_rejected(self) -> None:
        with pytest.raises(PolicyError, match=r"alignment\.k is 5; .*1 to 4") as caught:
            BlockwiseCDPolicy(method="blockwise_cd", k=5, m=99).check_limits(Small())
        assert caught.value.param == "alignment.k"

    def test_error_for_a_huge_count_is_short(self) -> None:
        policy = parse({"method": "best_of_n", "n": 10**4000}, METHODS, PRESETS)
        assert policy is not None
        with pytest.raises(PolicyError) as caught:
            policy.check_limits(Small())
        assert_fits_a_response(caught.value)


NAMES = st.sampled_from(
    [
        *("method", "n", "k", "m", "mu", "eta", "r_max", "max_draws", "rewards", "selection"),
        *("softmax", "worst_case", "lambda", "report"),
    ]
)
KNOWN = st.sampled_from(["none", "best_of_n", "blockwise_cd", "argmax", "safe", "trace"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=100)
    | KNOWN
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(st.characters(), max_size=100), inner, max_size=6)
    ),
    max_leaves=20,
)
NEAR_POLICIES = st.builds(
    lambda method, fields: {**fields, "method": method},
    st.sampled_from([*METHODS, "none"]),
    st.dictionaries(NAMES | st.text(st.characters(), max_size=100), JSON, max_size=5),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(JSON | NEAR_POLICIES)
def test_any_json_parses_to_a_policy_or_a_policy_error(sent: object) -> None:
    arrived = json.loads(json.dumps(sent))
    try:
        policy = parse(arrived, METHODS, PRESETS)
    except PolicyError as error:
        assert_fits_a_response(error)
    else:
        assert policy is None or isinstance(policy, Policy)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("presets.safe", "presets.safe.rewards.long is 1; it is too much"),
        ("", "rewards.long is 1; it is too much"),
    ],
)
def test_policy_error_under_replaces_the_first_part_of_the_path(prefix: str, message: str) -> None:
    error = PolicyError("alignment.rewards.long", "is 1; it is too much").under(prefix)
    assert str(error) == message
    assert error.param == message.split()[0]
