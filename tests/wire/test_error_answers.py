"""What answers tell of errors: failures by a class and an id, Anthropic's shape, presets' names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_model
from tests.server.faulty import SECRET
from tests.server.served import Served, demo_settings
from tests.server.wire import PROMPT
from tests.worker import adapter

from .fragile import install

OWN, NARROW = "sk-own", "sk-narrow"
TALK = [{"role": "user", "content": PROMPT}]
ID = re.compile(r"\(error id ([0-9a-f]{16})")
LEAKS = {"method": "best_of_n", "n": 2, "rewards": {"leaks": 1.0}}
SKIPS = {"method": "best_of_n", "n": 2, "rewards": {"leaks_skip": 1.0}, "report": "trace"}
COUNTS = {"method": "best_of_n", "n": 2, "rewards": {"counts": 1.0, "agrees": 1}, "report": "trace"}
FAULTY = {
    name: {"kind": "python", "callable": f"tests.server.faulty:{name}"}
    for name in ("leaks", "leaks_late", "counts", "agrees")
}
FAULTY["leaks_skip"] = {**FAULTY["leaks"], "on_failure": "skip"}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (path, the body beside the policy)
    "completions": ("/v1/completions", {"prompt": PROMPT}),
    "chat": ("/v1/chat/completions", {"messages": TALK}),
    "batch": ("/v1/chat/completions/batch", {"messages": [TALK, TALK]}),
    "responses": ("/v1/responses", {"input": PROMPT, "max_output_tokens": 16}),
    "messages": ("/v1/messages", {"messages": TALK}),
}
WHOLE = pytest.mark.parametrize("route", ROUTES)
STREAMED = pytest.mark.parametrize("route", [name for name in ROUTES if name != "batch"])


def settings(**changes: Any) -> dict[str, Any]:
    made = demo_settings(
        members={},
        presets={
            "safe": {"method": "blockwise_cd", "k": 2, "m": 32},
            "wide": {"method": "best_of_n", "n": 4},
        },
        decoders=["fragile"],
        keep_alive=0.05,
        **changes,
    )
    made["rewards"] |= FAULTY
    return made


def serving(folder: Path, flags: list[str], fake: bool, **changes: Any) -> Served:
    install(folder)
    return Served(settings(**changes), folder, flags, packages=folder, fake=fake)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, fake: bool) -> Iterator[Served]:
    """Keeps texts to its log; with keys, and models whose names look like a preset's."""
    keys = {"narrow": {"api_key_env": "CDTEST_NARROW", "presets": ["wide"]}}
    adapter.write(load_model(MODEL_DIR), lora := tmp_path_factory.mktemp("adapter") / "fond")
    flags = [
        *("--api-key", OWN, "--served-model-name", "demo", "demo:twin"),
        *("--enable-lora", "--max-lora-rank", str(adapter.RANK)),
        *("--lora-modules", f"demo:fond={lora}"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDTEST_NARROW", NARROW)
        with serving(tmp_path_factory.mktemp("guarded"), flags, fake, keys=keys) as served:
            yield served


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, fake: bool) -> Iterator[Served]:
    """Tells its clients the texts."""
    folder = tmp_path_factory.mktemp("open")
    with serving(folder, [], fake, error_details="client") as served:
        yield served


@pytest.fixture(scope="module")
def claude(guarded: Served) -> Iterator[Anthropic]:
    with Anthropic(base_url=guarded.base_url, api_key=OWN, max_retries=0) as client:
        yield client


def post(
    served: Served, route: str, policy: Any = None, key: str = OWN, **fields: Any
) -> httpx2.Response:
    path, body = ROUTES[route]
    body = {"model": "demo", "max_tokens": 16, **body, **fields}
    if route == "responses":
        del body["max_tokens"]
    if policy is not None:
        body["alignment"] = policy
    headers = {"authorization": f"Bearer {key}"}
    with served.client() as http:
        return http.post(path, json=body, headers=headers)


def hides(served: Served, text: str, what: str) -> str:
    """Asserts that an answer tells a failure by an id, under which the log has the rest."""
    assert what in text
    assert SECRET not in text
    assert "hunter2" not in text
    found = ID.search(text)
    assert found, text
    first = re.compile(rf"error id {found[1]}(, request \S+)?: ")
    (line,) = (line for line in served.logged(found[1]) if first.search(line))
    assert what in line
    assert SECRET in line
    return line


class TestHiddenExceptions:
    """What was raised where nobody expected it is told by its class and an id."""

    @WHOLE
    def test_reward_exception_is_a_500_without_its_text(self, guarded: Served, route: str) -> None:
        answer = post(guarded, route, LEAKS)
        assert answer.status_code == 500
        hides(guarded, answer.text, "reward 'leaks' failed with RuntimeError")
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}

    @STREAMED
    def test_reward_exception_in_a_stream_is_an_event_without_its_text(
        self, guarded: Served, route: str
    ) -> None:
        answer = post(guarded, route, LEAKS, stream=True)
        assert answer.status_code == 200
        hides(guarded, answer.text, "reward 'leaks' failed with RuntimeError")

    @WHOLE
    def test_skipped_reward_exception_is_counted_without_its_text(
        self, guarded: Served, route: str
    ) -> None:
        answer = post(guarded, route, SKIPS)
        assert answer.status_code == 200
        assert "hunter2" not in answer.text
        failed = answer.json()["alignment"]["failed"]
        assert failed == {"leaks_skip": 2 if route == "batch" else 1}

    @STREAMED
    def test_skipped_reward_exception_in_a_stream_is_counted_without_its_text(
        self, guarded: Served, route: str
    ) -> None:
        answer = post(guarded, route, SKIPS, stream=True)
        assert '"failed":{"leaks_skip":1}' in answer.text
        assert "hunter2" not in answer.text

    @pytest.mark.parametrize("per_token", [False, True])
    def test_reward_exception_of_a_score_request_is_a_500_without_its_text(
        self, guarded: Served, per_token: bool
    ) -> None:
        body = {"prompt": PROMPT, "responses": ["Lovely."], "rewards": {"leaks": 1}}
        headers = {"authorization": f"Bearer {OWN}", "x-request-id": f"mine-{per_token}"}
        with guarded.client() as http:
            answer = http.post(
                "/v1/alignment/score", json={**body, "per_token": per_token}, headers=headers
            )
        assert answer.status_code == 500
        line = hides(guarded, answer.text, "reward 'leaks' failed with RuntimeError")
        assert f"request score-mine-{per_token}:" in line

    def test_reward_exception_is_logged_with_the_request_id_of_the_client(
        self, guarded: Served
    ) -> None:
        headers = {"authorization": f"Bearer {OWN}", "x-request-id": "theirs"}
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "alignment": LEAKS}
        with guarded.client() as http:
            answer = http.post("/v1/completions", json=body, headers=headers)
        line = hides(guarded, answer.text, "reward 'leaks' failed with RuntimeError")
        assert "request cmpl-theirs-0-" in line

    def test_reward_exception_text_is_not_in_the_metrics(self, guarded: Served) -> None:
        post(guarded, "completions", LEAKS)
        with guarded.client() as http:
            assert "hunter2" not in http.get("/metrics").text

    @pytest.mark.parametrize("error", ["KeyError", "ValueError", "NotImplementedError"])
    @pytest.mark.parametrize("at", ["start", "selection"])
    @pytest.mark.parametrize("route", ["completions", "messages", "responses"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_decoder_exception_is_an_internal_error_without_its_text(
        self, guarded: Served, route: str, stream: bool, at: str, error: str
    ) -> None:
        policy = {"method": "fragile", "at": at, "error": error}
        answer = post(guarded, route, policy, stream=stream)
        assert answer.status_code == (200 if stream else 500)
        hides(guarded, answer.text, f"method 'fragile' failed with {error}")

    @pytest.mark.parametrize("error", ["KeyError", "ValueError"])
    def test_policy_check_exception_is_an_internal_error_without_its_text(
        self, guarded: Served, error: str
    ) -> None:
        answer = post(guarded, "chat", {"method": "fragile", "at": "limits", "error": error})
        assert answer.status_code == 500
        hides(guarded, answer.text, f"alignment failed with {error}")


class TestShownExceptions:
    @WHOLE
    def test_reward_exception_text_is_shown_if_the_operator_allows(
        self, open_server: Served, route: str
    ) -> None:
        answer = post(open_server, route, LEAKS)
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert message.startswith(f"reward 'leaks' failed with RuntimeError: {SECRET}")
        found = ID.search(message)
        assert found
        assert open_server.logged(found[1])

    @STREAMED
    def test_reward_exception_text_in_a_stream_is_shown_if_the_operator_allows(
        self, open_server: Served, route: str
    ) -> None:
        assert "hunter2" in post(open_server, route, LEAKS, stream=True).text

    def test_decoder_exception_text_is_shown_if_the_operator_allows(
        self, open_server: Served
    ) -> None:
        answer = post(open_server, "chat", {"method": "fragile", "at": "start"})
        assert "method 'fragile' failed with KeyError: 'https" in answer.text


class TestRewardNumbers:
    @WHOLE
    def test_reward_numbers_are_floats_in_every_answer(self, guarded: Served, route: str) -> None:
        answer = post(guarded, route, COUNTS)
        assert answer.status_code == 200
        assert_floats(answer.text, scores=1)

    @STREAMED
    def test_reward_numbers_are_floats_in_every_stream(self, guarded: Served, route: str) -> None:
        assert_floats(post(guarded, route, COUNTS, stream=True).text, scores=1)

    @WHOLE
    def test_reward_numbers_are_floats_if_no_reward_is_left(
        self, guarded: Served, route: str
    ) -> None:
        answer = post(guarded, route, SKIPS)
        assert answer.json()["alignment"]["score"] == 0.0
        assert_floats(answer.text, scores=1)

    def test_reward_numbers_are_floats_in_score_answers(self, guarded: Served) -> None:
        rewards = {"counts": 1, "agrees": 2, "sentiment": 0, "leaks_skip": 1}
        body = {"prompt": PROMPT, "responses": ["Lovely.", ""], "rewards": rewards}
        headers = {"authorization": f"Bearer {OWN}"}
        with guarded.client() as http:
            path = "/v1/alignment/score"
            answer = http.post(path, json={**body, "per_token": True}, headers=headers)
            alone = http.post(path, json={**body, "rewards": {"leaks_skip": 1}}, headers=headers)
        assert_floats(answer.text, scores=2)
        assert_floats(alone.text, scores=2)


def assert_floats(text: str, scores: int) -> None:
    """Asserts that all numbers of rewards, wherever in an answer or a stream, are JSON floats."""
    found: list[Any] = []
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if data.startswith("{"):
            _numbers(json.loads(data), found)
    assert len(found) >= scores
    assert {type(one) for one in found} == {float}


def _numbers(value: Any, found: list[Any], inside: bool = False) -> None:
    """Collects what is under keys of rewards' numbers."""
    if isinstance(value, dict):
        for key, one in value.items():
            under = inside or key in {"score", "rewards", "per_token"}
            _numbers(one, found, under or (key == "scores" and isinstance(one, dict)))
    elif isinstance(value, list):
        for one in value:
            _numbers(one, found, inside)
    elif inside:
        found.append(value)


def message(client: Anthropic, policy: Any = None, **fields: Any) -> Any:
    extra = fields.pop("extra_body", {}) | ({} if policy is None else {"alignment": policy})
    request = {"model": "demo", "messages": TALK, "max_tokens": 16} | fields
    return client.messages.create(**request, extra_body=extra)


POLICIES = pytest.mark.parametrize("policy", [None, {"method": "best_of_n", "n": 2}])


class TestAnthropicErrors:
    @POLICIES
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"extra_body": {"max_tokens": "many"}}, "max_tokens"),
            ({"max_tokens": 5000}, "5000"),
            ({"messages": "none"}, "messages"),
            ({"extra_body": {"temperature": "warm"}}, "temperature"),
        ],
    )
    def test_invalid_messages_body_is_an_invalid_request_error(
        self, claude: Anthropic, policy: Any, stream: bool, fields: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(anthropic.BadRequestError) as refused:
            message(claude, policy, stream=stream, **fields)
        check_shape(refused.value, "invalid_request_error")
        assert says in refused.value.body["error"]["message"]

    @pytest.mark.parametrize("sent", ["{", "[1]", ""])
    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
    def test_messages_body_that_is_not_an_object_is_an_invalid_request_error(
        self, guarded: Served, path: str, sent: str
    ) -> None:
        headers = {"x-api-key": OWN, "content-type": "application/json"}
        with guarded.client() as http:
            answer = http.post(path, content=sent, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"

    @POLICIES
    def test_unknown_model_of_messages_is_a_not_found_error(
        self, claude: Anthropic, policy: Any
    ) -> None:
        with pytest.raises(anthropic.NotFoundError) as refused:
            message(claude, policy, model="another")
        check_shape(refused.value, "not_found_error")

    @POLICIES
    def test_wrong_key_of_messages_is_an_authentication_error(
        self, guarded: Served, policy: Any
    ) -> None:
        with Anthropic(base_url=guarded.base_url, api_key="sk-no", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                message(client, policy)
            check_shape(refused.value, "authentication_error")
            with pytest.raises(anthropic.AuthenticationError) as refused:
                client.messages.count_tokens(model="demo", messages=TALK)
            check_shape(refused.value, "authentication_error")

    def test_count_tokens_errors_have_the_shape_of_messages_errors(self, claude: Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError) as refused:
            claude.messages.count_tokens(model="another", messages=TALK)
        check_shape(refused.value, "not_found_error")
        with pytest.raises(anthropic.BadRequestError) as invalid:
            claude.messages.count_tokens(model="demo", messages="none")
        check_shape(invalid.value, "invalid_request_error")

    def test_refused_policy_of_messages_names_its_field(self, claude: Anthropic) -> None:
        with pytest.raises(anthropic.BadRequestError) as refused:
            message(claude, {"method": "best_of_n", "n": 0})
        check_shape(refused.value, "invalid_request_error")
        assert refused.value.body["error"]["param"] == "alignment.n"

    def test_failed_reward_of_messages_is_an_api_error(self, claude: Anthropic) -> None:
        with pytest.raises(anthropic.InternalServerError) as failed:
            message(claude, LEAKS)
        check_shape(failed.value, "api_error")

    @pytest.mark.parametrize("reward", ["leaks", "leaks_late"])
    def test_failed_reward_in_a_messages_stream_is_an_api_error(
        self, claude: Anthropic, reward: str
    ) -> None:
        with pytest.raises(anthropic.APIStatusError) as failed:
            list(message(claude, {**LEAKS, "rewards": {reward: 1.0}}, stream=True))
        check_shape(failed.value, "api_error")
        assert f"reward '{reward}' failed" in failed.value.body["error"]["message"]


def check_shape(error: anthropic.APIStatusError, kind: str) -> None:
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == error.type == kind
    assert error.body["error"]["message"]


class TestUnknownPreset:
    @WHOLE
    @pytest.mark.parametrize("stream", [False, True])
    @POLICIES
    def test_unknown_preset_is_a_404_that_names_the_presets(
        self, guarded: Served, route: str, stream: bool, policy: Any
    ) -> None:
        fields = {} if route == "batch" else {"stream": stream}
        answer = post(guarded, route, policy, model="demo:unknown", **fields)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("model", 404)
        assert "'demo:unknown'" in error["message"]
        assert "demo:safe, demo:wide" in error["message"]

    def test_unknown_preset_error_names_only_presets_of_the_key(self, guarded: Served) -> None:
        for name in ("unknown", "safe"):
            answer = post(guarded, "chat", key=NARROW, model=f"demo:{name}")
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].endswith("has the presets demo:wide")

    def test_unknown_preset_of_count_tokens_is_a_404(self, claude: Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="demo:safe, demo:wide") as refused:
            claude.messages.count_tokens(model="demo:unknown", messages=TALK)
        check_shape(refused.value, "not_found_error")

    @WHOLE
    @POLICIES
    def test_model_id_like_a_preset_may_be_an_adapter(
        self, guarded: Served, route: str, policy: Any
    ) -> None:
        answer = post(guarded, route, policy, model="demo:fond")
        assert answer.status_code == 200
        assert answer.json()["model"] == "demo:fond"

    @WHOLE
    @POLICIES
    def test_model_id_like_a_preset_may_be_another_name_of_the_model(
        self, guarded: Served, route: str, policy: Any
    ) -> None:
        assert post(guarded, route, policy, model="demo:twin").status_code == 200

    def test_preset_of_another_model_is_refused_by_vllm(self, guarded: Served) -> None:
        answer = post(guarded, "chat", model="another:safe")
        assert answer.status_code == 404
        assert "another:safe" in answer.json()["error"]["message"]


@pytest.mark.parametrize("policy", [None, {"method": "best_of_n", "n": 2}], ids=["plain", "policy"])
@pytest.mark.parametrize("fields", [{"prompt_logprobs": 1}, {"echo": True, "logprobs": 1}])
def test_prompt_logprobs_with_adapters_are_refused_on_a_cpu(
    guarded: Served, policy: Any, fields: dict[str, Any]
) -> None:
    """vLLM's engine would die of them where another request runs in the same step."""
    answer = post(guarded, "completions", policy, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt_logprobs"
    assert "--enable-lora" in answer.json()["error"]["message"]
