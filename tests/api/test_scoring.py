"""Score requests that are rejected before they reach the engine."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from cdserve.api.scoring import ScoreRequest, score
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.decoders import BestOfNPolicy
from cdserve.errors import CdserveError, ModelError, PolicyError
from cdserve.scoring import Extractors, build

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
    extractors=Extractors.load({}, "log"),
    q_columns={},
    presets={"safe": BestOfNPolicy(method="best_of_n", n=2)},
    methods={},
)
ADAPTER = "demo:fond"


async def _check_model(request: Any) -> ErrorResponse | None:
    """vLLM's answer for an unknown model; None for a known one."""
    info = ErrorInfo(message="no", type="NotFoundError", code=404)
    known = request.model in (None, "demo", "twin", ADAPTER)
    return None if known else ErrorResponse(error=info)


SERVING = SimpleNamespace(
    _check_model=_check_model, models=SimpleNamespace(lora_requests={ADAPTER: None})
)
STATE = SimpleNamespace(online_renderer=None, openai_serving_completion=SERVING)


async def rejection(**fields: Any) -> CdserveError:
    """The error that rejects a request."""
    request = ScoreRequest.model_validate({"prompt": "a", "responses": ["b"], **fields})
    with pytest.raises(CdserveError) as caught:
        await score(request, SERVER, STATE, None)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "parts"),
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
            *("rewards.short", ["rewards.short is 1e+308", "at most 1000000"]),
        ),
        ({"rewards": {"long": -1e7}}, "rewards.long", ["at least -1000000"]),
        ({"rewards": {"long": float("nan")}}, "rewards.long", ["rewards.long is nan"]),
    ],
)
async def test_invalid_input_is_a_one_line_error_with_field_and_range(
    fields: dict[str, Any], param: str, parts: list[str]
) -> None:
    error = await rejection(**fields)
    assert isinstance(error, PolicyError)
    assert error.param == param
    assert all(part in str(error) for part in parts), error
    assert not any(part in str(error) for part in ("\n", "pydantic", "_Scoring", "Request"))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("other", ["'other' does not exist", "'demo'"]),
        ("safe", ["'safe' does not exist", "'demo'"]),
        ("demo:unknown", ["'demo:unknown' does not exist", "demo:safe"]),
    ],
)
async def test_unknown_model_is_a_model_error(model: str, parts: list[str]) -> None:
    error = await rejection(model=model)
    assert isinstance(error, ModelError)
    assert all(part in str(error) for part in parts), error


async def test_adapter_is_rejected_for_scoring() -> None:
    error = await rejection(model=ADAPTER)
    assert isinstance(error, PolicyError)
    assert error.param == "model"
    assert str(error) == "model is the adapter 'demo:fond'; this server scores with 'demo'"


@pytest.mark.parametrize("model", [None, "demo", "twin", "demo:safe"])
async def test_every_id_of_the_base_model_is_accepted_for_scoring(model: str | None) -> None:
    error = await rejection(model=model, prompt="")
    assert str(error).startswith("prompt is empty")
