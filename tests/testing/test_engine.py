"""``FakeEngine`` under ``AlignedEngine`` and vLLM's app, in this process and over ASGI."""

import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from cdserve.testing import TinyModel
from cdserve.testing.model import kl, log_softmax
from tests.server.served import demo_settings
from tests.waiting import HANG_SECONDS

PROMPT = "Review: travel lawn mower (garden)."
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """The environment as it was: the start of a server changes it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def written(settings: dict[str, Any], factory: pytest.TempPathFactory) -> Path:
    config: Path = factory.mktemp("fake") / "cdserve.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    from cdserve.launch.application import Application
    from cdserve.testing import running_app

    settings = demo_settings()
    settings["rewards"] |= {"fluent": {"kind": "loglik"}, "tuned": {"kind": "log_ratio"}}
    settings["rewards"]["sharp"] = {"kind": "confidence", "of": "entropy", "window": 4}
    settings["rewards"]["tuned"] |= {"tuned": "tuned", "reference": "base", "beta": 1.0}
    async with running_app(Application.build(written(settings, tmp_path_factory))) as running:
        yield running


@pytest.fixture(scope="module")
def model(running: Any) -> TinyModel:
    tiny: TinyModel = running[0].inner.model
    return tiny


@pytest.fixture(scope="module")
def numbers(running: Any) -> Mapping[str, int]:
    models: Mapping[str, int] = running[0].inner.models
    return models


@pytest.fixture(scope="module")
async def http(running: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=running[1])
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://fake", timeout=HANG_SECONDS
    ) as client:
        yield client


async def complete(http: httpx2.AsyncClient, policy: Any = None, **fields: Any) -> Any:
    body = {
        "model": "demo",
        "prompt": PROMPT,
        "max_tokens": 24,
        "seed": 3,
        "return_token_ids": True,
    }
    body |= fields | ({} if policy is None else {"alignment": policy})
    answer = await http.post(COMPLETIONS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_sampled_tokens_follow_the_model_at_a_temperature(
    http: httpx2.AsyncClient, model: TinyModel
) -> None:
    answer = await complete(
        http, n=64, max_tokens=32, temperature=2.0, ignore_eos=True, min_tokens=0
    )
    counts = Counter(token for choice in answer["choices"] for token in choice["token_ids"])
    total = counts.total()
    p = dict(zip(model.tokens, map(math.exp, log_softmax(model.log_p() / 2)), strict=True))
    chi_square = sum((counts[t] - total * p[t]) ** 2 / (total * p[t]) for t in p)
    assert counts.keys() <= p.keys()
    assert chi_square < 24.32  # 7 degrees of freedom at 0.001


async def test_seeded_requests_repeat_and_others_differ(http: httpx2.AsyncClient) -> None:
    first, again = await complete(http, max_tokens=20), await complete(http, max_tokens=20)
    other = await complete(http, max_tokens=20, seed=4)
    assert first["choices"] == again["choices"] != other["choices"]


async def test_lengths_and_stop_strings_are_honoured(http: httpx2.AsyncClient) -> None:
    (choice,) = (await complete(http, min_tokens=24))["choices"]
    assert len(choice["token_ids"]) == 24
    assert choice["finish_reason"] == "length"
    (choice,) = (await complete(http, ignore_eos=True))["choices"]
    word = choice["text"].split()[5]
    (stopped,) = (await complete(http, ignore_eos=True, stop=word))["choices"]
    assert stopped["text"] == choice["text"][: choice["text"].index(word)]
    assert stopped["finish_reason"] == "stop"


async def test_logprobs_are_those_of_the_model(http: httpx2.AsyncClient, model: TinyModel) -> None:
    (choice,) = (await complete(http, logprobs=2, echo=True, max_tokens=4))["choices"]
    logprobs = choice["logprobs"]["token_logprobs"]
    drawn = choice["token_ids"]
    assert logprobs[0] is None
    assert logprobs[-len(drawn) :] == pytest.approx(model.log_p_of(drawn), abs=1e-5)
    prompt = choice["prompt_token_ids"]
    assert logprobs[1 : len(prompt)] == pytest.approx(model.log_p_of(prompt[1:]), abs=1e-5)


@pytest.mark.parametrize(
    "policy",
    [{"method": "best_of_n", "n": 4}, {"method": "blockwise_cd", "k": 4, "m": 8}],
    ids=lambda policy: policy["method"],
)
async def test_score_is_the_value_of_the_best_candidate(
    http: httpx2.AsyncClient, model: TinyModel, policy: dict[str, Any]
) -> None:
    answer = await complete(http, policy | {"report": "trace"})
    (choice,) = answer["choices"]
    tokens = choice["prompt_token_ids"] + choice["token_ids"]
    assert answer["alignment"]["score"] == pytest.approx(model.value(tokens), abs=1e-5)
    for decision in answer["alignment"]["trace"]:
        scores = {one["chosen"]: one["score"] for one in decision["candidates"]}
        assert scores[True] >= scores.get(False, -math.inf)


async def test_rewards_of_log_p_and_confidence_are_those_of_the_models(
    http: httpx2.AsyncClient, model: TinyModel, numbers: Mapping[str, int]
) -> None:
    rewards = {"fluent": 1.0, "tuned": 1.0, "sharp": 1.0}
    answer = await complete(http, {"method": "best_of_n", "n": 2, "rewards": rewards})
    drawn = answer["choices"][0]["token_ids"]
    base, tuned = (math.fsum(model.log_p_of(drawn, numbers[name])) for name in ("base", "tuned"))
    reported = answer["alignment"]["rewards"]
    assert reported["tuned"] == pytest.approx(tuned - base, abs=1e-3)
    assert reported["fluent"] == pytest.approx(base, abs=1e-3)
    p = [math.exp(log_p) for log_p in model.log_p()]
    assert reported["sharp"] == pytest.approx(sum(x * math.log(x) for x in p), abs=1e-5)


async def test_mixing_draws_the_mixed_distribution_at_its_kl(
    http: httpx2.AsyncClient, model: TinyModel, numbers: Mapping[str, int]
) -> None:
    policy = {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}}
    answer = await complete(http, policy, max_tokens=10, min_tokens=0, ignore_eos=True)
    mixed = log_softmax((model.log_p() + model.log_p(numbers["tuned"])) / 2)
    assert answer["alignment"]["kl"]["estimate"] == pytest.approx(
        10 * kl(mixed, model.log_p()), abs=1e-4
    )


async def test_tilted_tokens_have_higher_values(http: httpx2.AsyncClient, model: TinyModel) -> None:
    async def mean_value(policy: Any) -> float:
        answer = await complete(http, policy, n=16, ignore_eos=True)
        chosen = [model.value(choice["token_ids"]) for choice in answer["choices"]]
        return sum(chosen) / len(chosen)

    assert await mean_value({"method": "tokenwise_cd", "beta": 0.05}) > await mean_value(None)


async def test_kl_budget_bounds_a_steered_response(http: httpx2.AsyncClient) -> None:
    policy = {"method": "tokenwise_cd", "beta": 0.3, "kl_budget": 0.5}
    kl_of = (await complete(http, policy, ignore_eos=True))["alignment"]["kl"]
    assert 0 < kl_of["bound"] <= 0.5


async def test_given_responses_are_scored_by_their_values(
    http: httpx2.AsyncClient, model: TinyModel
) -> None:
    body = {"model": "demo", "prompt": [5, 6, 7], "responses": ["good"], "per_token": True}
    answer = await http.post("/v1/alignment/score", json=body)
    assert answer.status_code == 200, answer.text
    (scored,) = answer.json()["scores"]
    assert scored["per_token"]["sentiment"][-1] == pytest.approx(scored["score"], abs=1e-5)


async def test_abandoned_stream_leaves_no_request(running: Any) -> None:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    engine = running[0].inner
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    stream = engine.generate(tokens_input([5, 6, 7]), params, "abandoned")
    await anext(stream)
    assert engine.output_processor.get_num_unfinished_requests() == 1
    await stream.aclose()
    assert engine.output_processor.get_num_unfinished_requests() == 0


async def test_concurrent_streams_end_with_their_reports(http: httpx2.AsyncClient) -> None:
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 24, "stream": True, "n": 2}
    body["alignment"] = {"method": "blockwise_cd", "k": 2, "m": 8}
    answer = await http.post(COMPLETIONS, json=body)
    chunks = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    assert answer.text.rstrip().endswith("data: [DONE]")
    assert [chunk for chunk in chunks if '"alignment"' in chunk] == chunks[-1:]


async def test_running_app_takes_a_model_and_restores_the_environment(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from cdserve.launch.application import Application
    from cdserve.testing import running_app

    model = TinyModel.of([5, 6, 7], end=0)
    before = dict(os.environ)
    application = Application.build(written(demo_settings(), tmp_path_factory))
    async with running_app(application, model, step_seconds=0.001) as (engine, app):
        assert engine.inner.model is model
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://fake") as client:
            answer = await complete(client, {"method": "best_of_n", "n": 2})
    assert set(answer["choices"][0]["token_ids"]) <= {5, 6, 7, 0}
    assert dict(os.environ) == before
