"""What a reward's failure tells: its class and an id the client, its text the log alone."""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from cdserve.errors import PolicyError, RewardFailure, ScoringError
from cdserve.failures import Details, hide_unexpected, log_failure
from cdserve.scoring import Objective, Response, Reward
from cdserve.scoring.programmatic import Python, ValueHead
from cdserve.scoring.reward import RewardOptions

SECRET = "https://rewards.internal/?key=hunter2 said: A fine kettle."
ID = re.compile(r"\(error id ([0-9a-f]{16})")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Late(Reward):
    """Raises what a library's own timeout does, long before the operator's."""

    kind = "late"
    options = RewardOptions(timeout=60)

    async def score(self, responses: Sequence[Response]) -> list[float]:
        raise TimeoutError("a socket's")


def response(own: float = 0.0) -> Response:
    values = {"own": own}
    return Response(prompt="Hi", text="A fine kettle.", tokens=4, finished=True, values=values)


def failing(error: BaseException, details: Details = "log", **options: Any) -> Objective:
    def function(prompt: str, response: str) -> float:
        raise error

    reward = Python(function)
    reward.options = RewardOptions(**options)
    return Objective({"own": 1.0}, {"own": reward}, details)


async def message(objective: Objective, request_id: str = "") -> str:
    with pytest.raises(ScoringError) as caught:
        await objective.score([response()], request_id)
    return str(caught.value)


def error_id(text: str) -> str:
    found = ID.search(text)
    assert found, text
    return found[1]


async def test_an_exception_of_a_reward_is_told_by_its_class_and_an_id() -> None:
    said = await message(failing(KeyError(SECRET)))
    assert said == (
        f"reward 'own' failed with KeyError (error id {error_id(said)}; "
        "the server's log has the details)"
    )


async def test_the_log_has_the_text_and_the_traceback_under_the_same_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = await message(failing(KeyError(SECRET)), "cmpl-mine-0")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    line, _, traceback = caplog.text.partition("\n")
    assert f"error id {error_id(said)}, request cmpl-mine-0: reward 'own'" in line
    assert SECRET in line
    assert "in function" in traceback


async def test_each_failure_has_an_id_of_its_own() -> None:
    objective = failing(KeyError(SECRET))
    assert len({error_id(await message(objective)) for _ in range(20)}) == 20


async def test_the_client_is_told_the_text_where_the_operator_says_so() -> None:
    said = await message(failing(KeyError(SECRET), "client"))
    assert said.startswith(f"reward 'own' failed with KeyError: '{SECRET}' (error id ")


@pytest.mark.parametrize("on_failure", ["skip", "base"])
async def test_a_failure_that_a_decision_does_without_is_a_warning_with_an_id(
    caplog: pytest.LogCaptureFixture, on_failure: Any
) -> None:
    objective = failing(KeyError(SECRET), on_failure=on_failure)
    (score,) = await objective.score([response()], "cmpl-mine-0")
    assert score.failed == ("own",)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.match(r"error id [0-9a-f]{16}, request cmpl-mine-0: .*hunter2", record.message)


async def test_an_exception_without_a_text_that_can_be_had_is_told_too() -> None:
    assert "reward 'own' failed with Unprintable (error id" in await message(failing(Unprintable()))


async def test_lines_of_an_exception_forge_no_lines_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await message(failing(KeyError("one\ntwo")))
    assert "\n" not in caplog.records[0].message


async def test_an_exception_that_would_end_the_server_is_hidden_too() -> None:
    assert "failed with SystemExit (error id" in await message(failing(SystemExit(SECRET)))


async def test_a_reward_s_own_timeout_is_not_taken_for_the_operators() -> None:
    said = await message(Objective({"own": 1.0}, {"own": Late()}))
    assert "reward 'own' failed with TimeoutError" in said


def test_what_a_reward_knows_of_its_failure_is_told_and_its_details_are_not() -> None:
    failure = RewardFailure("failed: the judge cannot be reached", SECRET)
    said = log_failure("reward 'graded'", failure, "log")
    assert said.startswith("reward 'graded' failed: the judge cannot be reached (error id ")
    assert "hunter2" not in said
    assert "hunter2" in log_failure("reward 'graded'", failure, "client")


def test_a_failure_without_details_does_not_send_anyone_to_the_log() -> None:
    said = log_failure("reward 'own'", RewardFailure("is nan, not a finite number"), "log")
    assert said == f"reward 'own' is nan, not a finite number (error id {error_id(said)})"


def test_errors_meant_for_clients_pass_as_they_are() -> None:
    with pytest.raises(PolicyError, match="k is 9"), hide_unexpected("method 'own'", "log"):
        raise PolicyError("alignment.k", "is 9")


async def test_a_per_token_value_that_is_not_finite_is_a_failure() -> None:
    made = Objective({"own": 1.0}, {"own": ValueHead("own")})
    prefixes = [response(math.nan), response(1.0)]
    with pytest.raises(ScoringError, match="reward 'own' is nan, not a finite number"):
        await made.per_token(prefixes)
