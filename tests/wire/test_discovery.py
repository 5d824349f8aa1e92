"""What the server tells of itself, and ``/v1/alignment/score``."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer
from cdserve.demo.tiny.reward import sentiment
from tests.schemas import pydantics_words
from tests.server.wire import BEST_OF_N, BLOCKWISE, PROMPT, assert_close, chat, complete

RESPONSES = [" I love it. The handle has a firm grip.", " It broke on the first day.", ""]


def score(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """The scores of three responses."""
    body = {"model": "demo", "prompt": PROMPT, "responses": RESPONSES} | fields
    answer = http.post("/v1/alignment/score", json=body)
    answer.raise_for_status()
    scores: list[dict[str, Any]] = answer.json()["scores"]
    return scores


class TestAlignment:
    def test_alignment_lists_methods_rewards_members_and_presets(self, http: httpx2.Client) -> None:
        answer = http.get("/v1/alignment").json()
        assert set(answer) == {
            *("methods", "rewards", "advice", "members", "extractors", "pairwise_judges"),
            *("presets", "limits"),
        }
        assert set(answer["methods"]) == {
            "none",
            "best_of_n",
            "best_of_poisson",
            "blockwise_cd",
            "cards",
            "tokenwise_cd",
            "logit_mixing",
            "rejection",
            "speculative_rejection",
            "good_enough",
        }
        assert {"sentiment", "sentiment_gold", "brevity"} <= set(answer["rewards"])
        assert set(answer["members"]) == {"tuned", "ref", "twin"}
        assert answer["extractors"] == ["last_number", "boxed", "broken_answer", "last_word"]
        assert set(answer["pairwise_judges"]) == {"absent"}
        assert answer["presets"]["safe"].items() >= BLOCKWISE.items()
        assert answer["presets"]["best-of-4"].items() >= BEST_OF_N.items()
        expected = {"max_n": 16, "max_k": 8, "max_candidate_tokens": 8192}
        assert answer["limits"].items() >= expected.items()

    def test_methods_are_json_schemas(self, http: httpx2.Client) -> None:
        methods = http.get("/v1/alignment").json()["methods"]
        assert {"k", "m", "rewards"} <= set(methods["blockwise_cd"]["properties"])
        assert {"k", "m"} <= set(methods["blockwise_cd"]["required"])
        assert {"n", "rewards"} <= set(methods["best_of_n"]["properties"])

    def test_rewards_say_what_they_can_score(self, http: httpx2.Client) -> None:
        rewards = http.get("/v1/alignment").json()["rewards"]
        assert [name for name, reward in rewards.items() if reward["default"]] == ["sentiment"]
        assert rewards["sentiment"]["kind"] == "value_head"
        assert rewards["sentiment"]["prefixes"] is True
        assert rewards["sentiment"]["next_tokens"] is True
        assert rewards["sentiment_gold"]["prefixes"] is False
        assert rewards["sentiment_gold"]["next_tokens"] is False

    def test_alignment_reveals_no_files_of_the_operator(self, http: httpx2.Client) -> None:
        text = http.get("/v1/alignment").text
        assert str(MODEL_DIR.parent) not in text
        assert "cdserve.demo.tiny.reward:" not in text

    def test_alignment_reveals_no_address_model_or_rubric_of_a_judge(
        self, http: httpx2.Client
    ) -> None:
        judge = http.get("/v1/alignment").json()["rewards"]["dead"]
        assert judge["kind"] == "judge"
        assert judge["scale"] == [1, 10]
        assert not judge.keys() & {"url", "model", "rubric", "api_key_env"}


class TestModels:
    def test_presets_are_models_with_a_parent(self, client: OpenAI) -> None:
        models = {model.id: model for model in client.models.list()}
        assert {"demo", "demo:safe", "demo:best-of-4"} <= set(models)
        assert models["demo"].parent is None
        assert {model.parent for name, model in models.items() if name != "demo"} == {"demo"}
        assert models["demo:safe"].max_model_len == models["demo"].max_model_len

    def test_health_is_ok(self, http: httpx2.Client) -> None:
        assert http.get("/health").status_code == 200

    @pytest.mark.parametrize("route", ["completions", "chat/completions"])
    def test_openapi_lists_the_field(self, http: httpx2.Client, route: str) -> None:
        document = http.get("/openapi.json").json()
        body = document["paths"][f"/v1/{route}"]["post"]["requestBody"]
        name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        fields = document["components"]["schemas"][name]["properties"]
        assert "alignment" in fields["alignment"]["description"]

    def test_openapi_lists_our_routes(self, http: httpx2.Client) -> None:
        paths = http.get("/openapi.json").json()["paths"]
        assert "get" in paths["/v1/alignment"]
        assert "post" in paths["/v1/alignment/score"]


class TestScore:
    def test_score_uses_the_default_reward(self, http: httpx2.Client) -> None:
        scores = score(http)
        assert [set(one) for one in scores] == [{"score", "rewards"}] * 3
        assert all(one["rewards"] == {"sentiment": one["score"]} for one in scores)

    def test_score_is_the_weighted_sum_of_rewards(self, http: httpx2.Client) -> None:
        weights = {"sentiment": 0.5, "sentiment_gold": 2.0, "brevity": 0.25}
        for one, text in zip(score(http, rewards=weights), RESPONSES, strict=True):
            total = sum(weights[name] * value for name, value in one["rewards"].items())
            assert one["score"] == pytest.approx(total)
            assert one["rewards"]["sentiment_gold"] == sentiment(text)

    def test_prompts_of_text_and_of_token_ids_have_the_same_scores(
        self, http: httpx2.Client
    ) -> None:
        token_ids = load_tokenizer(MODEL_DIR).encode(PROMPT)
        by_ids = [one["score"] for one in score(http, prompt=token_ids)]
        assert by_ids == pytest.approx([one["score"] for one in score(http)], abs=1e-5)

    def test_chat_prompt_goes_through_the_template(self, http: httpx2.Client) -> None:
        messages = [{"role": "user", "content": PROMPT}]
        tokenizer = load_tokenizer(MODEL_DIR)
        token_ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        by_chat = [one["score"] for one in score(http, prompt=messages)]
        by_ids = [one["score"] for one in score(http, prompt=token_ids)]
        assert by_chat == pytest.approx(by_ids, abs=1e-5)

    def test_per_token_has_a_value_per_token_and_one_for_the_end(self, http: httpx2.Client) -> None:
        tokenizer = load_tokenizer(MODEL_DIR)
        for one, text in zip(score(http, per_token=True), RESPONSES, strict=True):
            tokens = tokenizer.encode(text, add_special_tokens=False)
            values = one["per_token"]["sentiment"]
            assert len(values) == len(tokens) + 1
            assert values[-1] == pytest.approx(one["score"], abs=1e-5)

    def test_per_token_covers_only_value_heads(self, http: httpx2.Client) -> None:
        weights = {"sentiment": 1.0, "brevity": 1.0}
        (one, *_) = score(http, per_token=True, rewards=weights)
        assert set(one["per_token"]) == {"sentiment"}

    @pytest.mark.parametrize("ask", [complete, chat])
    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    @pytest.mark.parametrize("reward", ["sentiment", "brevity"])
    def test_score_of_a_response_matches_its_report(
        self, http: httpx2.Client, client: OpenAI, ask: Any, policy: dict[str, Any], reward: str
    ) -> None:
        """A finished response whose text the tokenizer encodes to the tokens that wrote it."""
        tokenizer = load_tokenizer(MODEL_DIR)
        for seed in range(10):
            answer = ask(client, {**policy, "rewards": {reward: 1.0}}, max_tokens=200, seed=seed)
            choice = answer.choices[0]
            text = choice.text if ask is complete else choice.message.content
            encoded = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            if encoded == choice.token_ids:
                break
        assert encoded == choice.token_ids
        owner = choice if ask is complete else answer
        (scored,) = score(
            http, prompt=owner.prompt_token_ids, responses=[text], rewards={reward: 1.0}
        )
        assert scored["score"] == pytest.approx(answer.alignment["score"], abs=1e-4)

    @pytest.mark.parametrize(
        ("fields", "param", "says"),
        [
            ({"rewards": {"safety": 1}}, "rewards", ["'safety'", "sentiment"]),
            ({"rewards": {}}, "rewards", ["{}", "at least 1 item"]),
            ({"responses": []}, "responses", ["[]", "at least 1 item"]),
            ({"responses": ["a"] * 17}, "responses", ["17", "1 to 16"]),
            ({"responses": ["a", "word " * 4000]}, "responses.1", ["2047"]),
            ({"prompt": ""}, "prompt", []),
            ({"prompt": []}, "prompt", []),
            ({"prompt": [10**6]}, "prompt", [str(10**6)]),
            ({"prompt": [10**30]}, "prompt.0", [str(10**30)]),
            ({"prompt": [-1]}, "prompt.0", ["-1", "0 to"]),
            ({"prompt": [{"foo": 1}]}, "prompt.0", ["{'foo': 1}", "role"]),
            ({"rewards": {"brevity": 1e308}}, "rewards.brevity", ["1e+308", "1000000"]),
            ({"prompt": [{"role": "nobody", "content": "x"}]}, "prompt", ["nobody"]),
            ({"other": 1}, "other", ["not known", "per_token"]),
            ({"prompt": 3}, "prompt", ["3", "a string, a list of integers or a list of objects"]),
            ({"responses": [1]}, "responses.0", ["1", "a string"]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_invalid_score_requests_are_refused(
        self, http: httpx2.Client, fields: dict[str, Any], param: str, says: list[str]
    ) -> None:
        body = {"model": "demo", "prompt": PROMPT, "responses": RESPONSES} | fields
        answer = http.post("/v1/alignment/score", json=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert all(part in error["message"] for part in says), error["message"]
        assert pydantics_words(error["message"]) == []

    @pytest.mark.parametrize(
        ("model", "says"),
        [("other", ["'other'", "'demo'"]), ("demo:unknown", ["'demo:unknown'", "demo:best-of-4"])],
    )
    def test_score_with_an_unknown_model_is_a_404(
        self, http: httpx2.Client, model: str, says: list[str]
    ) -> None:
        body = {"model": model, "prompt": PROMPT, "responses": RESPONSES}
        answer = http.post("/v1/alignment/score", json=body)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == ("model", "NotFoundError")
        assert all(part in error["message"] for part in says), error["message"]

    @pytest.mark.parametrize("prompt", [PROMPT, [{"role": "user", "content": PROMPT}]])
    def test_preset_scores_as_its_base_model(self, http: httpx2.Client, prompt: Any) -> None:
        # Values differ in a last digit by the batch that computes them.
        assert_close(score(http, model="demo:best-of-4", prompt=prompt), score(http, prompt=prompt))
