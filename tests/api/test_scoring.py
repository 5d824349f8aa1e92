"""Score requests that are refused before the engine is asked."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from cdserve.api.scoring import ScoreRequest, score
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.decoders import BestOfNPolicy
from cdserve.errors import CdserveError, ModelError, PolicyError
from cdserve.scoring import build

SETTINGS = Settings.model_validate(
    {
        "model": "./m",
        "served_model_name": "demo",
        "default_reward": "short",
        "rewards": {name: {"kind": "json_valid"} for name in ("short", "long")},
    }
)
SERVER = AlignmentServer(
    settings=SETTINGS,
    decoders={},
    rewards=build(SETTINGS.rewards, {}),
    q_columns={},
    presets={"safe": BestOfNPolicy(method="best_of_n", n=2)},
    methods={},
)
ADAPTER = "demo:fond"


async def _check_model(request: Any) -> ErrorResponse | None:
    """vLLM's answer for a model that it does not know."""
    info = ErrorInfo(message="no", type="NotFoundError", code=404)
    known = request.model in (None, "demo", "twin", ADAPTER)
    return None if known else ErrorResponse(error=info)


SERVING = SimpleNamespace(
    _check_model=_check_model, models=SimpleNamespace(lora_requests={ADAPTER: None})
)
STATE = SimpleNamespace(online_renderer=None, openai_serving_completion=SERVING)


async def refusal(**fields: Any) -> CdserveError:
    """Why a request is refused."""
    request = ScoreRequest.model_validate({"prompt": "a", "responses": ["b"], **fields})
    with pytest.raises(CdserveError) as caught:
        await score(request, SERVER, STATE, None)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": [5, -1]}, "prompt.1", ["prompt.1 is -1", "0 to 2147483647"]),
        ({"prompt": [10**30]}, "prompt.0", [f"prompt.0 is {10**30}", "0 to 2147483647"]),
        ({"prompt": [{"foo": 1}]}, "prompt.0", ["prompt.0 is {'foo': 1}", "role"]),
        ({"prompt": [{"role": "user", "content": 5}]}, "prompt.0", ["'content': 5", "message"]),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": 1}]},
            *("prompt.1", ["prompt.1 is {'role': 1}", "message"]),
        ),
        (
            {"rewards": {"short": 1e308, "long": 1e308}},
            *("rewards.short", ["rewards.short is 1e+308", "less than or equal to 1000000"]),
        ),
        ({"rewards": {"long": -1e7}}, "rewards.long", ["greater than or equal to -1000000"]),
        ({"rewards": {"long": float("nan")}}, "rewards.long", ["rewards.long is nan"]),
    ],
)
async def test_bad_input_is_told_in_one_line_with_its_field_and_what_is_accepted(
    fields: dict[str, Any], param: str, says: list[str]
) -> None:
    error = await refusal(**fields)
    assert isinstance(error, PolicyError)
    assert error.param == param
    assert all(part in str(error) for part in says), error
    assert not any(part in str(error) for part in ("\n", "pydantic", "_Scoring", "Request"))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("other", ["'other' does not exist", "'demo'"]),
        ("safe", ["'safe' does not exist", "'demo'"]),
        ("demo:unknown", ["'demo:unknown' does not exist", "demo:safe"]),
    ],
)
async def test_a_model_that_is_not_there_is_an_error_of_the_model(
    model: str, says: list[str]
) -> None:
    error = await refusal(model=model)
    assert isinstance(error, ModelError)
    assert all(part in str(error) for part in says), error


async def test_an_adapter_is_there_but_does_not_score() -> None:
    error = await refusal(model=ADAPTER)
    assert isinstance(error, PolicyError)
    assert error.param == "model"
    assert str(error) == "model is the adapter 'demo:fond'; this server scores with 'demo'"


@pytest.mark.parametrize("model", [None, "demo", "twin", "demo:safe"])
async def test_every_name_of_the_base_model_scores(model: str | None) -> None:
    error = await refusal(model=model, prompt="")
    assert str(error).startswith("prompt is empty")
