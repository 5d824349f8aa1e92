"""Score requests that are refused before the engine is asked."""

from types import SimpleNamespace
from typing import Any

import pytest

from cdserve.api.scoring import ScoreRequest, score
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.decoders import BestOfNPolicy
from cdserve.errors import PolicyError
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
STATE = SimpleNamespace(online_renderer=None)


async def refusal(**fields: Any) -> PolicyError:
    """Why a request is refused."""
    request = ScoreRequest.model_validate({"prompt": "a", "responses": ["b"], **fields})
    with pytest.raises(PolicyError) as caught:
        await score(request, SERVER, STATE, None)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": [5, -1]}, "prompt.1", ["prompt.1 is -1", "0 or more"]),
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
    assert error.param == param
    assert all(part in str(error) for part in says), error
    assert not any(part in str(error) for part in ("\n", "pydantic", "_Scoring", "Request"))
