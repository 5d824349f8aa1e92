"""The judge, over real HTTP against a small OpenAI-compatible endpoint."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from cdserve import config
from cdserve.errors import ConfigError
from cdserve.scoring import Objective, Response, build


class Endpoint(ThreadingHTTPServer):
    """Answers what it is told to; keeps the questions and how many came at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.answers: list[str | int] = ["Grade: 7"]
        """In turn, the last again and again; a number is an HTTP status."""
        self.meeting = threading.Barrier(1)
        """As many questions as are answered together."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers["authorization"])
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            turn = self.server.answers
            answer = turn.pop(0) if len(turn) > 1 else turn[0]
        with suppress(threading.BrokenBarrierError):
            self.server.meeting.wait()
        with self.server.lock:
            self.server.at_once -= 1
        status = answer if isinstance(answer, int) else 200
        message = {"role": "assistant", "content": answer if status == 200 else ""}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        made = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        sent = json.dumps({**made, "choices": [choice]}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def objective(endpoint: Endpoint, **settings: Any) -> Objective:
    given = {"kind": "judge", "url": endpoint.url, "model": "grader", "retries": 0, **settings}
    given.setdefault("rubric", "Q: {prompt}\nA: {response}\nGrade it from 1 to 10.")
    reward = config.JudgeReward.model_validate(given)
    return Objective({"helpful": 1.0}, build({"helpful": reward}))


def response(text: str) -> Response:
    return Response(prompt="Why {response}?", text=text, tokens=3, finished=True, values={})


async def test_last_number_of_the_answer_is_the_grade(endpoint: Endpoint) -> None:
    endpoint.answers = ["It is 2 of 3 right. Grade: 7.5"]
    (score,) = await objective(endpoint).score([response("Because.")])
    assert score.rewards == {"helpful": 7.5}
    (asked,) = endpoint.asked
    assert asked["model"] == "grader"
    assert asked["temperature"] == 0
    question = "Q: Why {response}?\nA: Because.\nGrade it from 1 to 10."
    assert asked["messages"] == [{"role": "user", "content": question}]


async def test_equal_responses_are_judged_once(endpoint: Endpoint) -> None:
    scores = await objective(endpoint).score([response("a"), response("b"), response("a")])
    assert [score.total for score in scores] == [7.0] * 3
    assert len(endpoint.asked) == 2


async def test_questions_at_once_stay_within_concurrency(endpoint: Endpoint) -> None:
    endpoint.meeting = threading.Barrier(2)
    made = objective(endpoint, concurrency=2)
    await asyncio.gather(*(made.score([response(f"{i}a"), response(f"{i}b")]) for i in range(4)))
    assert len(endpoint.asked) == 8
    assert endpoint.most_at_once == 2


async def test_failed_attempt_is_retried(endpoint: Endpoint) -> None:
    endpoint.answers = [503, "Grade: 4"]
    (score,) = await objective(endpoint, retries=1).score([response("a")])
    assert score.total == 4.0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Lovely!", "the judge gave no number"),
        ("11", "the judge gave 11; grades are from 1 to 10"),
        (500, "the judge answered with status 500"),
    ],
)
async def test_answer_without_an_accepted_grade_is_a_failure(
    endpoint: Endpoint, answer: str | int, said: str
) -> None:
    from cdserve.errors import ScoringError

    endpoint.answers = [answer]
    with pytest.raises(ScoringError) as caught:
        await objective(endpoint).score([response("a")])
    assert str(caught.value).startswith(f"reward 'helpful' failed: {said} (error id ")
    assert "Lovely!" not in str(caught.value)
    (score,) = await objective(endpoint, on_failure="skip").score([response("a")])
    assert score.failed == ("helpful",)


async def test_unreachable_judge_is_reported_without_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from cdserve.errors import ScoringError

    with Endpoint() as gone:
        url = gone.url
    with pytest.raises(ScoringError, match="the judge cannot be reached") as caught:
        await objective(gone).score([response("a")])
    assert url not in str(caught.value)
    assert url in caplog.text


async def test_hanging_judge_fails_after_its_timeout(endpoint: Endpoint) -> None:
    endpoint.meeting = threading.Barrier(2)  # there is no second question
    (score,) = await objective(endpoint, on_failure="base", timeout=0.1).score([response("a")])
    assert (score.total, score.failed) == (0.0, ("helpful",))
    endpoint.meeting.abort()


async def test_api_key_is_read_from_the_environment(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.helpful\.api_key_env names JUDGE_KEY"):
        objective(endpoint, api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    await objective(endpoint, api_key_env="JUDGE_KEY").score([response("a")])
    assert endpoint.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rubric": "How good is it?"}, "it must contain {response}"),
        ({"scale": [5, 1]}, "the first number must be below the second"),
        ({"url": "judge:8000"}, "url"),
    ],
)
def test_invalid_judge_settings_are_rejected(
    endpoint: Endpoint, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        objective(endpoint, **settings)


def test_judge_scores_only_finished_responses(endpoint: Endpoint) -> None:
    made = objective(endpoint).rewards["helpful"]
    assert (made.prefixes, made.reads_text, made.reads_values) == (False, True, False)
