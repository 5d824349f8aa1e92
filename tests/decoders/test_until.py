"""Blocks that end at strings and tokens: where, what it does to a search, and the fields."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve import kl
from cdserve.decoders import (
    BlockwiseCD,
    BlockwiseCDPolicy,
    Cards,
    CardsPolicy,
    Decision,
    SpeculativeRejection,
    SpeculativeRejectionPolicy,
)
from cdserve.decoders.registry import BUILT_IN
from cdserve.decoders.until import first_end
from cdserve.errors import PolicyError
from cdserve.policy import parse
from cdserve.report import report

from .toy import (
    LENGTH,
    A,
    B,
    E,
    Limits,
    P,
    Tokens,
    Toy,
    blockwise,
    collect,
    ended,
    finish,
    probability,
    replay,
    value,
)

METHODS = {name: each.policy for name, each in BUILT_IN.items()}
Ends = Sequence[str | int]


def policy(**fields: Any) -> BlockwiseCDPolicy:
    return BlockwiseCDPolicy.model_validate({"method": "blockwise_cd", "k": 2, "m": 3, **fields})


def toy(until: Ends) -> Callable[..., Toy]:
    return partial(Toy, until=until)


def steps(before: Tokens, step: Tokens, m: int, until: Ends) -> dict[Tokens, tuple[float, bool]]:
    """Each block after a prefix, with its probability and whether one of ``until`` ended it.

    Args:
        step: the tokens since the last block that one of ``until`` ended.
    """
    found: dict[Tokens, tuple[float, bool]] = {}
    for token, p in enumerate(P):
        text = "".join("abE"[one] for one in (*step, token))
        at_end = any(one == token if isinstance(one, int) else text.endswith(one) for one in until)
        if at_end or m == 1 or ended((*before, token)):
            found[token,] = (p, at_end)
        else:
            further = steps((*before, token), (*step, token), m - 1, until)
            found |= {(token, *rest): (p * q, end) for rest, (q, end) in further.items()}
    return found


def searched(
    k: Sequence[int],
    m: int,
    until: Ends = (),
    before: Tokens = (),
    step: Tokens = (),
    rank: Callable[[Tokens], float] = value,
) -> Counter[Tokens]:
    """Distribution of responses by the best of K blocks, in closed form.

    Args:
        k: K of each decision, the last repeated.
        rank: what prefixes are compared by.
    """
    if ended(before):
        return Counter({before: 1.0})
    blocks = steps(before, step, m, until)
    values = {z: rank((*before, *z)) for z in blocks}
    responses: Counter[Tokens] = Counter()
    for block, (p, at_end) in blocks.items():
        below = sum(q for z, (q, _) in blocks.items() if values[z] < values[block])
        equal = sum(q for z, (q, _) in blocks.items() if values[z] == values[block])
        best = ((below + equal) ** k[0] - below ** k[0]) * p / equal
        after = () if at_end else (*step, *block)
        for response, q in searched(k[1:] or k, m, until, (*before, *block), after, rank).items():
            responses[response] += best * q
    return responses


class TestEnd:
    @given(
        st.text("ab\n", max_size=3),
        st.lists(st.text("ab\n", max_size=3), max_size=6),
        st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3),
    )
    def test_end_is_the_first_token_that_completes_a_string(
        self, step: str, pieces: list[str], strings: list[str]
    ) -> None:
        found = first_end(step, range(len(pieces)), pieces, strings, [])

        def occurrences(text: str) -> int:
            return sum(text.startswith(one, i) for one in strings for i in range(len(text)))

        texts = [step + "".join(pieces[:n]) for n in range(len(pieces) + 1)]
        counts = [occurrences(text) for text in texts]
        expected = next((n for n in range(1, len(texts)) if counts[n] > counts[n - 1]), None)
        assert (None if found is None else found[0]) == expected

    def test_characters_after_the_string_belong_to_the_block(self) -> None:
        assert first_end("", [5, 6, 7], ["A", ".\n\nB", "C"], ["\n\n"], []) == (2, "\n\n")

    def test_string_may_begin_before_the_block(self) -> None:
        assert first_end("A\n", [6, 7], ["\n", "B"], ["\n\n"], []) == (1, "\n\n")

    def test_token_ends_a_block_whatever_its_text(self) -> None:
        assert first_end("", [5, 6, 7], ["", "", ""], ["x"], [6]) == (2, 6)


class TestDistribution:
    @pytest.mark.parametrize(
        ("k", "m", "until"),
        [
            (2, 2, ["b"]),
            (2, 2, [A]),
            (3, 2, ["ab"]),
            (2, 2, ["aa", "ba"]),
            (2, 2, ["ba", B, "aaa"]),
        ],
    )
    def test_search_has_the_enumerated_distribution(self, k: int, m: int, until: Ends) -> None:
        asked = policy(k=k, m=m, until=list(until))
        served = replay(lambda proposal: BlockwiseCD.run(asked, proposal, None), toy(until))
        assert served.responses == pytest.approx(searched([k], m, until), abs=1e-12)
        assert served.kl <= served.kl_bound + 1e-12
        assert served.kl_bound == pytest.approx(served.decisions * kl.best_of_n_bound(k))

    @pytest.mark.parametrize("m", [1, 2])
    def test_string_that_never_comes_changes_nothing(self, m: int) -> None:
        asked = policy(m=m, until=["bbbb"])
        served = replay(lambda proposal: BlockwiseCD.run(asked, proposal, None), toy(["bbbb"]))
        assert served.responses == pytest.approx(blockwise(2, m).responses, abs=1e-12)

    def test_every_token_as_an_end_gives_blocks_of_one_token(self) -> None:
        one = searched([2], 3, [A, B, E])
        assert one == pytest.approx(blockwise(2, 1).responses, abs=1e-12)

    def test_speculative_rejection_compares_at_the_ends_of_steps(self) -> None:
        asked = SpeculativeRejectionPolicy.model_validate(
            {"method": "speculative_rejection", "n": 2, "m": 3, "until": ["b"]}
        )
        served = replay(lambda proposal: SpeculativeRejection.run(asked, proposal, None), toy("b"))
        expected: Counter[Tokens] = Counter()
        firsts = steps((), (), LENGTH, ["b"])
        for one, (p, _) in firsts.items():
            for other, (q, _) in firsts.items():
                kept = one if value(one) >= value(other) else other
                for response, share in _rest(kept).items():
                    expected[response] += p * q * share
        assert served.responses == pytest.approx(expected, abs=1e-12)
        assert served.kl <= served.kl_bound


def _rest(before: Tokens) -> dict[Tokens, float]:
    """Distribution of the responses that the model draws after a prefix."""
    if ended(before):
        return {before: 1.0}
    return {y: p * q for z, p in enumerate(P) for y, q in _rest((*before, z)).items()}


class TestBlocks:
    """Draws are given; the stop of each block is looked for in them."""

    def decide(self, until: Ends, *draws: Tokens, m: int = 2) -> list[Decision]:
        left = iter(draws)
        proposal = Toy(lambda *_: [next(left)], until=until)
        return finish(collect(BlockwiseCD.run(policy(k=1, m=m, until=until), proposal, None)))

    def blocks(self, decisions: Sequence[Decision]) -> list[Tokens]:
        return [decision.candidate.token_ids for decision in decisions]

    def test_string_that_begins_in_the_block_before_ends_a_block(self) -> None:
        decisions = self.decide(["ab"], (A,), (B, B), (B,), m=1)
        assert [decision.candidate.until for decision in decisions] == [None, "ab", None]
        decisions = self.decide(["ab"], (B, A), (B, B))
        assert self.blocks(decisions) == [(B, A), (B,)]
        assert decisions[1].candidate.until == "ab"

    def test_string_does_not_overlap_one_that_ended_a_block(self) -> None:
        decisions = self.decide(["aa"], (A, A), (A,))
        assert [decision.candidate.until for decision in decisions] == ["aa", None]

    def test_trace_names_the_end_of_a_block(self) -> None:
        decisions = self.decide(["b", E], (B, A), (A, E))
        made = report("blockwise_cd", decisions, trace=True)
        (first,), (second,) = (decision["candidates"] for decision in made["trace"])
        assert (first["until"], first["tokens"], first["finish_reason"]) == ("b", 1, None)
        assert second["until"] == E
        plain = report("blockwise_cd", self.decide(["bb"], (A, A), (B,)), trace=True)
        assert "until" not in plain["trace"][0]["candidates"][0]

    def test_cards_accepts_blocks_that_end_at_a_string(self) -> None:
        left = iter([(A, B, B), (A, E)])
        fields = {"m": 3, "k": 1, "max_draws": 1, "r_star": -1.0, "until": ["b"]}
        asked = CardsPolicy.model_validate({"method": "cards", **fields})
        proposal = Toy(lambda *_: [next(left)], until=["b"])
        made: AsyncIterator[Decision] = Cards.run(asked, proposal, 0)
        assert self.blocks(finish(collect(made))) == [(A, B), (A, E)]


class TestPolicy:
    @pytest.mark.parametrize(
        ("until", "param", "words"),
        [
            ([], "alignment.until", "it must have at least 1 item"),
            ("b", "alignment.until", "is 'b'; it must be a list"),
            ([""], "alignment.until.0", "is ''; it takes a string of 1 to 100 characters or an"),
            (["b", -1], "alignment.until.1", "is -1; it takes a string"),
            ([True], "alignment.until.0", "is True; it takes a string"),
            (["b"] * 17, "alignment.until", "it must have at most 16 items"),
        ],
    )
    def test_invalid_ends_are_rejected_with_their_field(
        self, until: Any, param: str, words: str
    ) -> None:
        sent = {"method": "blockwise_cd", "k": 2, "m": 4, "until": until}
        with pytest.raises(PolicyError) as error:
            parse(sent, METHODS, {})
        assert error.value.param == param
        assert words in str(error.value)

    @pytest.mark.parametrize(
        "sent",
        [
            {"method": "best_of_n", "n": 2},
            {"method": "best_of_n", "n": 2, "race": {"delta": 0.1}},
            {"method": "rejection", "eta": 1.0, "r_max": 1.0, "max_draws": 2},
            {"method": "tokenwise_cd", "beta": 1.0},
        ],
    )
    def test_methods_without_blocks_have_no_ends_of_blocks(self, sent: dict[str, Any]) -> None:
        with pytest.raises(PolicyError, match="is not known") as error:
            parse({**sent, "until": ["b"]}, METHODS, {})
        assert error.value.param == "alignment.until"

    def test_estimated_gain_is_refused_with_ends_of_blocks(self) -> None:
        with pytest.raises(PolicyError, match="must be a number with 'until'") as error:
            policy(until=["b"], continuation_gain="auto").check_limits(Limits())
        assert error.value.param == "alignment.continuation_gain"
        policy(until=["b"], continuation_gain=0.5).check_limits(Limits())


def test_probabilities_of_steps_sum_to_one() -> None:
    for until in (["b"], ["ab"], ["aa", B]):
        found = steps((), (), 2, until)
        assert math.fsum(p for p, _ in found.values()) == pytest.approx(1.0)
        assert all(p == pytest.approx(probability(block)) for block, (p, _) in found.items())
