"""Reward models behind HTTP, over real HTTP, in the forms of vLLM, SGLang and TEI."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cdserve import config
from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer
from cdserve.errors import ConfigError, PolicyError, ScoringError
from cdserve.policy import Policy
from cdserve.scoring import Objective, Response, build, objective
from cdserve.scoring.reward_model import Dialogue, tokens
from tests.waiting import until

Answer = Callable[[str, Any], Any]
"""Answer to a request's path and body; an int is an HTTP status, bytes are sent as they are."""


class RewardServer(ThreadingHTTPServer):
    """A reward server with two outputs per text: its length, and minus its length."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.connections: set[Any] = set()
        self.answers: list[Answer] = [outputs]
        """In turn; the last one for all further requests."""
        self.at_once = self.most_at_once = 0
        self.meeting = threading.Barrier(1)
        """As many requests as are answered together."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def bodies(self) -> list[Any]:
        return [body for _, body in self.requests]

    def handle_error(self, *_: object) -> None:
        """A client that leaves is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RewardServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.requests.append((self.path, body))
            server.keys.append(self.headers["authorization"])
            server.connections.add(self.client_address)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            turn = server.answers
            answer = (turn.pop(0) if len(turn) > 1 else turn[0])(self.path, body)
        with suppress(threading.BrokenBarrierError):
            server.meeting.wait()
        with server.lock:
            server.at_once -= 1
        status = answer if isinstance(answer, int) else 200
        if isinstance(answer, int):
            answer = {"error": {"message": f"refused with key {self.headers['authorization']}"}}
        sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


def texts(body: Any) -> list[str]:
    """Texts of a request to any route."""
    if "messages" in body:
        return [body["messages"][-1]["content"]]
    if "documents" in body:
        return body["documents"]
    if "inputs" in body:
        return [each[-1] for each in body["inputs"]]
    return body.get("input") or body.get("text") or body["input_ids"]


def outputs(path: str, body: Any) -> Any:
    """Lengths, in the form of the server whose request this is."""
    values = [float(len(text)) for text in texts(body)]
    if path == "/predict":  # TEI sorts by score
        rows = [{"bad": -value, "good": value} for value in values]
        order = [sorted(row.items(), key=lambda item: -item[1]) for row in rows]
        return [[{"score": score, "label": label} for label, score in row] for row in order]
    if path == "/score":
        data = [{"index": i, "object": "score", "score": v} for i, v in enumerate(values)]
        return {"id": "s", "object": "list", "created": 1, "model": "m", "data": data, "usage": {}}
    if "input" not in body and "messages" not in body:
        return [{"embedding": [value, -value], "meta_info": {"id": "1"}} for value in values]
    key = {"/classify": "probs", "/pooling": "data"}[path]
    extra = {"label": "LABEL_0", "num_classes": 2} if key == "probs" else {"object": "pooling"}
    data = [{"index": i, key: [v, -v], **extra} for i, v in enumerate(values)]
    return {"id": "c", "object": "list", "created": 1, "model": "m", "data": data, "usage": {}}


@pytest.fixture
def rm() -> Iterator[RewardServer]:
    with RewardServer() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.meeting.abort()
        running.shutdown()


def rewards(at: RewardServer, /, **settings: Any) -> Objective:
    """The reward ``long``, the first output of the server's model."""
    fixed = {"kind": "http", "url": at.url, "route": "classify", "output": 0, "retries": 0}
    if settings.get("route") in ("score", "openai_chat"):
        fixed.pop("output")
    reward = config.HttpReward.model_validate(fixed | settings)
    return Objective({"long": 1.0}, build({"long": reward}))


def response(text: str, messages: Sequence[dict[str, Any]] | None = None) -> Response:
    return Response(prompt="Why?", text=text, tokens=3, finished=True, values={}, messages=messages)


def totals(scores: Sequence[Any]) -> list[float]:
    return [score.total for score in scores]


PLAIN = "{prompt} {response}"
TWO = [response("a"), response("bbb")]


@pytest.mark.parametrize("path", ["classify", "pooling"])
async def test_vllm_reads_the_conversation_and_returns_raw_outputs(
    rm: RewardServer, path: str
) -> None:
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    scores = await rewards(rm, route=path, model="rm").score([response("So.", prompt)])
    assert totals(scores) == [3.0]
    messages = [
        prompt[0],
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    sent = {"model": "rm", "use_activation": False, "messages": messages}
    assert rm.requests == [(f"/{path}", sent)]


async def test_conversations_are_sent_at_the_same_time(rm: RewardServer) -> None:
    rm.meeting = threading.Barrier(2)
    scorer = rewards(rm, concurrency=2)
    scores = await scorer.score([response("a" * i) for i in range(1, 5)])
    assert totals(scores) == [1.0, 2.0, 3.0, 4.0]
    assert (len(rm.requests), rm.most_at_once) == (4, 2)
    assert len(rm.connections) <= 2  # kept alive


async def test_texts_of_concurrent_requests_share_a_batch(rm: RewardServer) -> None:
    scorer = rewards(rm, template=PLAIN, max_batch=8, activation=True)
    await asyncio.gather(*(scorer.score([response(f"{i}"), response(f"{i}b")]) for i in range(4)))
    (body,) = rm.bodies
    assert len(body["input"]) == 8
    assert body["input"][:2] == ["Why? 0", "Why? 0b"]
    assert body["use_activation"] is True


async def test_tokenizer_sends_the_token_ids_of_the_conversation(rm: RewardServer) -> None:
    scorer = rewards(rm, tokenizer=str(MODEL_DIR))
    await scorer.score(TWO)
    (body,) = rm.bodies
    tokenizer = load_tokenizer(MODEL_DIR)
    expected = [tokens(tokenizer, Dialogue.of(each, each.text)) for each in TWO]
    assert body["input"] == expected


async def test_score_route_sends_prompts_and_responses_as_pairs(rm: RewardServer) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "When?"}]
    scores = await rewards(rm, route="score").score([*TWO, response("Now", prompt)])
    assert totals(scores) == [1.0, 3.0, 3.0]
    sent = {"queries": ["Why?", "Why?", "Be kind.\n\nWhen?"], "documents": ["a", "bbb", "Now"]}
    assert rm.requests == [("/score", {"use_activation": False, **sent})]


async def test_outputs_per_token_are_read_at_the_last_token(rm: RewardServer) -> None:
    rows = [[0.5], [0.25], [-1.5]]
    rm.answers = [lambda *_: {"data": [{"index": 0, "object": "pooling", "data": rows}]}]
    (score,) = await rewards(rm, route="pooling", output=None).score([response("a")])
    assert score.total == -1.5


@pytest.mark.parametrize("how", ["text", "input_ids"])
async def test_sglang_reads_texts_or_token_ids(rm: RewardServer, how: str) -> None:
    inputs = {"template": PLAIN} if how == "text" else {"tokenizer": str(MODEL_DIR)}
    scores = await rewards(rm, server="sglang", **inputs).score(TWO)
    ((path, body),) = rm.requests
    assert (path, list(body)) == ("/classify", [how])
    assert totals(scores) == [float(len(each)) for each in body[how]]


async def test_tei_outputs_are_chosen_by_label(rm: RewardServer) -> None:
    scorer = rewards(rm, server="tei", template="{response}", output="bad")
    assert totals(await scorer.score(TWO)) == [-1.0, -3.0]
    body = {"raw_scores": True, "truncate": False, "inputs": [["a"], ["bbb"]]}
    assert rm.requests == [("/predict", body)]


async def test_tei_scores_pairs(rm: RewardServer) -> None:
    scorer = rewards(rm, server="tei", route="score", output="good", activation=True)
    assert totals(await scorer.score(TWO)) == [1.0, 3.0]
    assert rm.bodies[0]["inputs"] == [["Why?", "a"], ["Why?", "bbb"]]
    assert rm.bodies[0]["raw_scores"] is False


async def test_chat_model_prints_a_number(rm: RewardServer) -> None:
    message = {"role": "assistant", "content": "1 of 2: -250.5"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    rm.answers = [lambda *_: {**head, "choices": [choice]}]
    chat = rewards(rm, route="openai_chat", model="m", template="Rate {response}")
    assert totals(await chat.score([response("a")])) == [-250.5]
    ((path, body),) = rm.requests
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Rate a"}]
    assert chat.rewards["long"].kind == "http"


async def test_rewards_by_other_outputs_share_the_requests(rm: RewardServer) -> None:
    fixed = {"kind": "http", "url": rm.url, "route": "classify", "template": PLAIN}
    built = build(
        {
            "long": config.HttpReward.model_validate({**fixed, "output": 0}),
            "short": config.HttpReward.model_validate({**fixed, "output": 1, "prefixes": True}),
        }
    )
    both = Objective({"long": 1.0, "short": 0.5}, built)
    (score,) = await both.score([response("abc")])
    assert score.rewards == {"long": 8.0, "short": -8.0}
    assert len(rm.requests) == 1


def fixed(answer: Any) -> Answer:
    return lambda *_: answer


FAULTS: dict[str, tuple[Answer, str]] = {
    "500": (fixed(500), "the reward server answered with status 500"),
    "not json": (fixed(b"<html>Bad gateway</html>"), "the reward server did not answer in JSON"),
    "wrong shape": (fixed({"data": [{"probability": 1}]}), "gave an answer that is not of the"),
    "a list": (fixed(["a"]), "gave an answer that is not of the form of /classify"),
    "null": (fixed({"data": [{"probs": [None, 1.0]}]}), "gave an answer that is not of the"),
    "NaN": (fixed(b'{"data": [{"probs": [NaN, 1.0]}]}'), "is nan, not a finite number"),
    "no outputs": (fixed({"data": [{"probs": []}]}), "gave an answer that is not of the form"),
    "count": (
        fixed({"data": [{"probs": [1.0]}] * 3}),
        "gave outputs for 3 responses; 1 were sent",
    ),
    "one output": (
        fixed({"data": [{"probs": [1.0]}]}),
        r"failed: its output is 1; the model has \[0\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_of_the_server_is_handled_as_on_failure_says(
    rm: RewardServer, fault: str
) -> None:
    answer, message = FAULTS[fault]
    rm.answers = [answer]
    output = 1 if fault == "one output" else 0
    with pytest.raises(ScoringError, match=f"^reward 'long' .*{message}") as caught:
        await rewards(rm, output=output).score([response("a")])
    assert rm.url not in str(caught.value)
    for policy, scored in (("skip", ("long",)), ("base", ("long",))):
        scorer = rewards(rm, output=output, on_failure=policy)
        (score,) = await scorer.score([response("a")])
        assert (score.total, score.failed) == (0.0, scored)
    rm.answers = [outputs]
    assert totals(await rewards(rm).score([response("a")])) == [1.0]


@pytest.mark.parametrize("policy", ["skip", "base"])
async def test_slow_server_fails_at_the_timeout(rm: RewardServer, policy: str) -> None:
    rm.meeting = threading.Barrier(2)
    scorer = rewards(rm, timeout=0.2, on_failure=policy)
    (score,) = await scorer.score([response("a")])
    assert (score.total, score.failed) == (0.0, ("long",))


async def test_dead_server_is_reported_without_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RewardServer() as gone:
        url = gone.url
    with pytest.raises(ScoringError, match="the reward server cannot be reached") as caught:
        await rewards(gone).score([response("a")])
    assert url not in str(caught.value)
    assert f"{url}/classify" in caplog.text
    (score,) = await rewards(gone, on_failure="skip").score([response("a")])
    assert score.failed == ("long",)


@pytest.mark.parametrize("status", [429, 503])
async def test_failed_attempt_is_retried(rm: RewardServer, status: int) -> None:
    rm.answers = [fixed(status), outputs]
    assert totals(await rewards(rm, retries=1).score([response("a")])) == [1.0]
    assert len(rm.requests) == 2


async def test_refused_text_fails_alone(rm: RewardServer) -> None:
    def answer(path: str, body: Any) -> Any:
        too_long = any(len(text) > 10 for text in texts(body))
        return 400 if too_long else outputs(path, body)

    rm.answers = [answer]
    scorer = rewards(rm, template="{response}", retries=3)
    bad, good = await asyncio.gather(
        scorer.score([response("abc"), response("much too long")]),
        scorer.score([response("ab"), response("a")]),
        return_exceptions=True,
    )
    assert isinstance(bad, ScoringError)
    assert "answered with status 400" in str(bad)
    assert not isinstance(good, BaseException)
    assert totals(good) == [2.0, 1.0]
    # In halves, without a retry.
    assert [len(body["input"]) for body in rm.bodies] == [4, 2, 1, 1, 2]


async def test_client_that_leaves_cancels_its_requests(rm: RewardServer) -> None:
    slow = rm.meeting = threading.Barrier(2)
    scorer = rewards(rm, concurrency=1)
    task = asyncio.create_task(scorer.score(TWO))
    await asyncio.to_thread(until, lambda: rm.requests)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    rm.meeting = threading.Barrier(1)
    assert totals(await scorer.score([response("cc")])) == [2.0]
    slow.abort()
    sent = [text for body in rm.bodies for text in texts(body)]
    assert sent == ["a", "cc"]  # the second response was never sent


async def test_log_has_the_start_of_the_answer_without_the_api_key(
    rm: RewardServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REWARD_KEY", "secret-1")
    rm.answers = [fixed(401)]
    with pytest.raises(ScoringError, match="answered with status 401"):
        await rewards(rm, api_key_env="REWARD_KEY").score([response("a")])
    assert rm.keys == ["Bearer secret-1"]
    assert "refused with key Bearer ***" in caplog.text
    assert "secret-1" not in caplog.text
    rm.answers = [fixed(b"y" * 1000)]
    with pytest.raises(ScoringError, match="did not answer in JSON"):
        await rewards(rm).score([response("a")])
    assert "y" * 200 in caplog.text
    assert "y" * 201 not in caplog.text


def test_missing_api_key_and_tokenizer_are_refused_at_start(
    rm: RewardServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.long\.api_key_env names NO_SUCH_KEY"):
        rewards(rm, api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match=r"rewards\.long\.tokenizer is '/.*': "):
        rewards(rm, tokenizer=str(tmp_path))


class Prefixes(Policy):
    """A policy that scores prefixes."""

    method: str = "blockwise"
    scores_prefixes = True


def test_prefixes_are_scored_only_if_declared(rm: RewardServer) -> None:
    policy = Prefixes(method="blockwise", rewards={"long": 1.0})
    with pytest.raises(PolicyError, match=r"rewards\.long scores finished responses only"):
        objective(policy, rewards(rm).rewards, None)
    assert objective(policy, rewards(rm, prefixes=True).rewards, None).reads_text


CHAT = {"route": "openai_chat", "model": "m", "template": "{response}"}
LOADED = "model: m\nrewards: {{a: {}}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "rm:8000"}, r"url is 'rm:8000'; it must match"),
        ({"url": "http://rm:8000/v1/"}, r"url is .*; it must not end in /v1"),
        ({"url": "http://me:pw@rm"}, r"url is .http://\*\*\*@rm.; it must have no user"),
        ({"route": "embed"}, r"route is 'embed'; it must be 'classify', 'pooling', 'score' or"),
        ({"server": "tei", "route": "pooling"}, r"route is .*; server tei has classify, score"),
        ({"server": "sglang", "route": "score"}, r"route is .*; server sglang has classify, op"),
        ({**CHAT, "model": None}, r"model is None; route openai_chat of server vllm requires it"),
        ({"route": "openai_chat", "model": "m"}, r"template is None; .* requires it"),
        ({**CHAT, "output": 0}, r"output is 0; route openai_chat of .* does not have it"),
        ({**CHAT, "prefixes": True}, r"prefixes is True; .* does not have it"),
        ({"route": "score", "template": "{response}"}, r"template is .* does not have it"),
        ({"route": "score", "output": 0}, r"output is 0; .* does not have it"),
        ({"template": "{prompt}"}, r"template is '{prompt}'; it must contain {response}"),
        ({"template": "{response}", "tokenizer": "t"}, r"tokenizer is 't'; template replaces"),
        ({"output": "good"}, r"output is 'good'; .* does not send labels; it must be an index"),
        ({"server": "sglang"}, r"tokenizer is None; .* set tokenizer or template"),
        (
            {"server": "sglang", "template": "{response}", "activation": True},
            r"activation is True; .* does not have it",
        ),
        ({"server": "tei"}, r"template is None; route classify of server tei requires it"),
        (
            {"server": "tei", "template": "{response}", "output": 1},
            r"output is 1; .* it must be a label",
        ),
        ({"concurrency": 0}, r"concurrency is 0; it must be at least 1"),
        ({"urll": "http://rm"}, r"urll is not known; did you mean url"),
    ],
)
def test_invalid_settings_name_the_key_the_value_and_what_is_accepted(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    reward = {"kind": "http", "url": "http://rm:8000", "route": "classify", **settings}
    path = tmp_path / "cdserve.yaml"
    path.write_text(LOADED.format(json.dumps(reward)))
    with pytest.raises(ConfigError, match=rf"rewards\.a\.{message}"):
        config.load(path)


def test_path_of_a_tokenizer_is_relative_to_the_settings(tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    reward = {"kind": "http", "url": "http://rm/", "route": "classify", "tokenizer": "./rm"}
    path = tmp_path / "cdserve.yaml"
    path.write_text(LOADED.format(json.dumps(reward)))
    reward_settings = config.load(path).rewards["a"].model_dump()
    assert (reward_settings["tokenizer"], reward_settings["url"]) == (
        str(tmp_path / "rm"),
        "http://rm",
    )
