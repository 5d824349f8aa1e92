"""Votes and ``mbr`` of ``best_of_n``: answers, reports, errors, and servers without rewards."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from cdserve import kl
from tests.server.answers import last_word
from tests.server.served import Served, demo_settings
from tests.server.wire import Ask, chat, complete, joined
from tests.waiting import HANG_SECONDS
from tests.wire.test_stopping import text_of, traced

ROUTES = pytest.mark.parametrize("ask", [complete, chat])
PATTERN = r"(?i)([a-z]{4,})[^a-z]*$"
"""The last word of at least four letters, if no shorter one follows."""


def vote(extract: str = "last_word", n: int = 8, **fields: Any) -> dict[str, Any]:
    """A policy; ``weights`` is the vote's, other fields are the policy's."""
    parameters = {"extract": extract}
    if "weights" in fields:
        parameters["weights"] = fields.pop("weights")
    return {"method": "best_of_n", "n": n, "selection": {"vote": parameters}, **fields}


def check_votes(answer: Any, weights: str = "count") -> None:
    """Asserts that the response and the report are those of a vote over the traced candidates."""
    candidates, report = traced(answer), answer.alignment
    for each in candidates:
        assert each["answer"] == last_word(each["text"])
    counts = Counter(each["answer"] for each in candidates if each["answer"] is not None)
    assert {each["answer"]: each["count"] for each in report["votes"]["classes"]} == counts
    assert report["votes"]["unanswered"] == len(candidates) - counts.total()
    winner = report["votes"]["classes"][0]
    (chosen,) = [each for each in candidates if each["chosen"]]
    assert chosen["answer"] == winner["answer"]
    members = [each["score"] for each in candidates if each["answer"] == winner["answer"]]
    assert chosen["score"] == max(members) == report["score"]
    assert text_of(answer) == chosen["text"]
    if weights == "count":
        assert winner["count"] == winner["weight"] == max(counts.values())


@ROUTES
def test_vote_returns_the_best_response_with_the_most_frequent_answer(
    client: OpenAI, ask: Ask
) -> None:
    for seed in range(4):
        answer = ask(client, vote(report="trace"), seed=seed, max_tokens=16)
        check_votes(answer)
        bound = kl.best_of_n_bound(8)
        assert answer.alignment["kl"]["bound"] == answer.alignment["kl"]["estimate"] == bound
        assert answer.alignment["kl"]["estimator"] == "bound"


def test_softmax_vote_weighs_answers_by_their_scores(client: OpenAI) -> None:
    policy = vote(weights={"softmax": 0.5}, report="trace")
    answer = complete(client, policy, max_tokens=16)
    check_votes(answer, "softmax")
    assert sum(each["weight"] for each in answer.alignment["votes"]["classes"]) == pytest.approx(1)


def test_reward_vote_needs_scores_of_at_least_zero(client: OpenAI) -> None:
    fine = complete(client, vote(weights="reward", rewards={"named": 1.0}), max_tokens=16)
    assert all(each["weight"] >= 0 for each in fine.alignment["votes"]["classes"])
    with pytest.raises(openai.InternalServerError, match=r"score is -.*'reward'.*softmax"):
        complete(client, vote(weights="reward", rewards={"brevity": 1.0}), max_tokens=16)


def test_posterior_vote_needs_probabilities_and_stops(client: OpenAI) -> None:
    policy = vote(weights="posterior", rewards={"named": 1.0}, report="trace")
    report = complete(client, {**policy, "stop": {"certain": 0.9}, "at_once": 1}, max_tokens=16)
    weights = [each["weight"] for each in report.alignment["votes"]["classes"]]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) <= 1
    assert report.alignment["draws"]["allowed"] == 8
    with pytest.raises(openai.InternalServerError, match=r"score is -.*'posterior'.*from 0 to 1"):
        complete(client, {**policy, "rewards": {"brevity": 1.0}}, max_tokens=16)


def test_regular_expression_finds_the_answers(client: OpenAI) -> None:
    answer = complete(client, vote(PATTERN, report="trace"), max_tokens=16)
    for each in traced(answer):
        assert each["answer"] is None or each["answer"] in each["text"]
    assert answer.alignment["votes"]["classes"]


@pytest.mark.parametrize("extract", ["boxed", "last_number"])
def test_vote_without_answers_returns_the_best_response(client: OpenAI, extract: str) -> None:
    best = complete(client, {"method": "best_of_n", "n": 4})
    answer = complete(client, vote(extract, 4))
    assert answer.alignment["votes"] == {"classes": [], "unanswered": 4}
    assert text_of(answer) == text_of(best)


@ROUTES
def test_stream_of_a_vote_has_the_answer_and_the_report(client: OpenAI, ask: Ask) -> None:
    whole = ask(client, vote(), max_tokens=16)
    chunks = list(ask(client, vote(), max_tokens=16, stream=True))
    assert joined(chunks) == text_of(whole)
    (report,) = [chunk.alignment for chunk in chunks if hasattr(chunk, "alignment")]
    assert report["votes"] == whole.alignment["votes"]


def test_votes_of_several_choices_add_up(client: OpenAI) -> None:
    report = complete(client, vote(n=4), n=3, max_tokens=16).alignment
    parts = [each["votes"] for each in report["choices"]]
    totals = Counter[str]()
    for part in parts:
        totals.update({each["answer"]: each["count"] for each in part["classes"]})
    assert {each["answer"]: each["count"] for each in report["votes"]["classes"]} == totals
    assert report["votes"]["unanswered"] == sum(part["unanswered"] for part in parts)


@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_certain_vote_stops_and_keeps_the_answer(client: OpenAI, at_once: int | None) -> None:
    saved = 0
    for seed in range(6):
        whole = complete(client, vote(), seed=seed, max_tokens=16).alignment
        dial = {} if at_once is None else {"at_once": at_once}
        policy = vote(stop={"certain": 1}, **dial)
        report = complete(client, policy, seed=seed, max_tokens=16).alignment
        assert report["votes"]["classes"][0]["answer"] == whole["votes"]["classes"][0]["answer"]
        considered = sum(each["count"] for each in report["votes"]["classes"])
        saved += 8 - considered - report["votes"]["unanswered"]
        assert report["draws"]["allowed"] == 8
        assert report["kl"]["bound"] == kl.best_of_n_bound(8)
    assert saved > 0


def test_mbr_returns_the_highest_score_plus_agreement(client: OpenAI) -> None:
    best = complete(client, {"method": "best_of_n", "n": 8})
    faint = {"method": "best_of_n", "n": 8, "selection": {"mbr": {"beta": 1e-9}}}
    answer = complete(client, faint)
    assert text_of(answer) == text_of(best)
    assert "votes" not in answer.alignment
    central = complete(client, {**faint, "selection": {"mbr": {}}, "rewards": {"sentiment": 0}})
    assert central.alignment["kl"]["bound"] == kl.best_of_n_bound(8)


ERRORS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    # name: (policy, the error's param, words of its message)
    "an unknown extractor": (
        vote("first_word"),
        "alignment.selection.vote.extract",
        ["'first_word'", "'last_number', 'boxed', 'broken_answer', 'last_word'", "one group"],
    ),
    "two groups": (
        vote("(a)(b)"),
        "alignment.selection.vote.extract",
        ["'(a)(b)'", "exactly one group", "has 2"],
    ),
    "not an expression": (
        vote("(a"),
        "alignment.selection.vote.extract",
        ["'(a'", "not a regular expression"],
    ),
    "a recursive expression": (
        vote("(a)(?R)"),
        "alignment.selection.vote.extract",
        ["not a regular expression"],
    ),
    "a verbose expression": (
        vote("(?ix) (a)"),
        "alignment.selection.vote.extract",
        ["may not have the flag x"],
    ),
    "a long expression": (
        vote(f"({'a' * 500})"),
        "alignment.selection.vote.extract",
        ["up to 500 characters"],
    ),
    "a large expression": (
        vote("(?:(?:(a{1000}){1000}){1000})"),
        "alignment.selection.vote.extract",
        ["product", "up to 20000"],
    ),
    "a short expression with a large count": (
        vote("((?:ab?c*){9999})"),
        "alignment.selection.vote.extract",
        ["product", "up to 20000"],
    ),
    "an approximate expression": (
        vote("(holds){e<=2}"),
        "alignment.selection.vote.extract",
        ["a brace", "must be escaped"],
    ),
    "nested sets": (
        vote("([[a-z]+)"),
        "alignment.selection.vote.extract",
        ["not a regular expression", "nested set"],
    ),
    "no extractor": (
        {**vote(), "selection": {"vote": {}}},
        "alignment.selection.vote.extract",
        ["missing"],
    ),
    "other weights": (
        vote(weights="score"),
        "alignment.selection.vote.weights",
        ["'score'", "'count'", "'reward'"],
    ),
    "another field": (
        {**vote(), "selection": {"vote": {"extract": "boxed", "weight": "count"}}},
        "alignment.selection.vote.weight",
        ["did you mean weights"],
    ),
    "beta of 0": (
        {**vote(), "selection": {"mbr": {"beta": 0}}},
        "alignment.selection.mbr.beta",
        ["0", "above 0"],
    ),
    "another similarity": (
        {**vote(), "selection": {"mbr": {"similarity": "rouge"}}},
        "alignment.selection.mbr.similarity",
        ["'rouge'", "'token_f1'"],
    ),
    "two selections": (
        {**vote(), "selection": {"vote": {"extract": "boxed"}, "mbr": {}}},
        "alignment.selection",
        ["argmax", "vote", "mbr"],
    ),
    "votes over blocks": (
        {"method": "blockwise_cd", "k": 2, "m": 8, "selection": {"vote": {"extract": "boxed"}}},
        "alignment.selection",
        ["argmax", "best_of_n also takes"],
    ),
    "stop by threshold": (vote(stop={"threshold": 1.0}), "alignment.stop", ["'argmax'"]),
    "certain without a vote": (
        {"method": "best_of_n", "n": 4, "stop": {"certain": 0.9}},
        "alignment.stop.certain",
        ["'vote'", "'count'"],
    ),
    "certain of too little": (
        vote(stop={"certain": 0.5}),
        "alignment.stop",
        ["0.5", "above 0.5"],
    ),
    "a race": (vote(race={"delta": 0.01}), "alignment.race", ["'selection'", "'argmax'"]),
}


@pytest.mark.parametrize(("policy", "param", "says"), ERRORS.values(), ids=ERRORS)
def test_invalid_vote_is_refused_by_its_field(
    client: OpenAI, policy: dict[str, Any], param: str, says: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, policy)
    assert caught.value.param == param
    assert all(word in caught.value.message for word in says), caught.value.message


def test_broken_extractor_is_a_500_without_the_text_of_its_exception(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        complete(client, vote("broken_answer"))
    assert "extractor 'broken_answer' failed with ValueError" in caught.value.message
    assert "secret" not in caught.value.message


def test_slow_expression_is_a_422_that_names_the_field(client: OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        complete(client, vote(r"((?:.|..)+)\d", 2), max_tokens=48, ignore_eos=True)
    assert caught.value.param == "alignment.selection.vote.extract"


class TestWithoutRewards:
    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, fake: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
        """Client of a server without rewards."""
        settings = demo_settings(rewards={}, members={}, default_reward=None, playground=False)
        settings["presets"] = {"self-consistency": vote(PATTERN)}
        folder: Path = tmp_path_factory.mktemp("without_rewards")
        with (
            Served(settings, folder, fake=fake) as served,
            OpenAI(
                base_url=f"{served.base_url}/v1",
                api_key="none",
                max_retries=0,
                timeout=HANG_SECONDS,
            ) as client,
        ):
            yield client

    def test_self_consistency_needs_no_reward(self, plain: OpenAI) -> None:
        answer = complete(plain, vote(PATTERN, report="trace"), max_tokens=16)
        report = answer.alignment
        assert (report["score"], report["rewards"]) == (0.0, {})
        assert report["scores"] == {"mean": 0.0, "max": 0.0, "min": 0.0}
        winner = report["votes"]["classes"][0]["answer"]
        first = next(each for each in traced(answer) if each["answer"] == winner)
        assert first["chosen"]
        assert text_of(answer) == first["text"]

    def test_preset_without_rewards_is_a_model(self, plain: OpenAI) -> None:
        answer = complete(plain, model="demo:self-consistency", max_tokens=16)
        assert answer.alignment["votes"]["classes"]

    def test_mbr_needs_no_reward(self, plain: OpenAI) -> None:
        policy = {"method": "best_of_n", "n": 4, "selection": {"mbr": {}}}
        assert complete(plain, policy, max_tokens=16).alignment["rewards"] == {}

    @pytest.mark.parametrize(
        "policy",
        [
            {"method": "best_of_n", "n": 4},
            vote(weights="reward"),
            vote(weights={"softmax": 1.0}),
            vote(threshold={"score": 0.0}),
        ],
    )
    def test_policy_that_reads_scores_still_needs_a_reward(
        self, plain: OpenAI, policy: dict[str, Any]
    ) -> None:
        with pytest.raises(
            openai.BadRequestError, match="is missing, and this server has no rewards"
        ) as caught:
            complete(plain, policy)
        assert caught.value.param == "alignment.rewards"
