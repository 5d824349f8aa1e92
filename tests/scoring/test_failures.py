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
    """Raises a library's TimeoutError long before the operator's timeout."""

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


async def test_client_gets_class_and_id_of_a_rewards_exception() -> None:
    said = await message(failing(KeyError(SECRET)))
    assert said == (
        f"reward 'own' failed with KeyError (error id {error_id(said)}; "
        "the server's log has the details)"
    )


async def test_log_has_text_and_traceback_under_the_clients_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = await message(failing(KeyError(SECRET)), "cmpl-mine-0")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    line, _, traceback = caplog.text.partition("\n")
    assert f"error id {error_id(said)}, request cmpl-mine-0: reward 'own'" in line
    assert SECRET in line
    assert "in function" in traceback


async def test_each_failure_has_its_own_id() -> None:
    objective = failing(KeyError(SECRET))
    assert len({error_id(await message(objective)) for _ in range(20)}) == 20


async def test_client_gets_the_text_with_error_details_client() -> None:
    said = await message(failing(KeyError(SECRET), "client"))
    assert said.startswith(f"reward 'own' failed with KeyError: '{SECRET}' (error id ")


@pytest.mark.parametrize("on_failure", ["skip", "base"])
async def test_skipped_failure_is_logged_as_a_warning_with_an_id(
    caplog: pytest.LogCaptureFixture, on_failure: Any
) -> None:
    objective = failing(KeyError(SECRET), on_failure=on_failure)
    (score,) = await objective.score([response()], "cmpl-mine-0")
    assert score.failed == ("own",)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.match(r"error id [0-9a-f]{16}, request cmpl-mine-0: .*hunter2", record.message)


async def test_exception_whose_text_cannot_be_read_is_reported() -> None:
    assert "reward 'own' failed with Unprintable (error id" in await message(failing(Unprintable()))


async def test_lines_of_an_exception_cannot_forge_log_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await message(failing(KeyError("one\ntwo")))
    assert "\n" not in caplog.records[0].message


async def test_system_exit_of_a_reward_is_reported_as_a_failure() -> None:
    assert "failed with SystemExit (error id" in await message(failing(SystemExit(SECRET)))


async def test_rewards_own_timeout_error_is_not_reported_as_the_operators_timeout() -> None:
    said = await message(Objective({"own": 1.0}, {"own": Late()}))
    assert "reward 'own' failed with TimeoutError" in said


def test_reward_failure_sends_its_reason_but_not_its_details() -> None:
    failure = RewardFailure("failed: the judge cannot be reached", SECRET)
    said = log_failure("reward 'graded'", failure, "log")
    assert said.startswith("reward 'graded' failed: the judge cannot be reached (error id ")
    assert "hunter2" not in said
    assert "hunter2" in log_failure("reward 'graded'", failure, "client")


def test_reward_failure_without_details_does_not_refer_to_the_log() -> None:
    said = log_failure("reward 'own'", RewardFailure("is nan, not a finite number"), "log")
    assert said == f"reward 'own' is nan, not a finite number (error id {error_id(said)})"


def test_errors_meant_for_clients_pass_unchanged() -> None:
    with pytest.raises(PolicyError, match="k is 9"), hide_unexpected("method 'own'", "log"):
        raise PolicyError("alignment.k", "is 9")


async def test_per_token_value_that_is_not_finite_is_a_failure() -> None:
    made = Objective({"own": 1.0}, {"own": ValueHead("own")})
    prefixes = [response(math.nan), response(1.0)]
    with pytest.raises(ScoringError, match="reward 'own' is nan, not a finite number"):
        await made.per_token(prefixes)
