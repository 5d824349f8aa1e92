"""Sampling parameters of a policy, in place of those of a request with temperature 0."""

from typing import Any

import pytest

from cdserve.api.requests import AlignedChatCompletionRequest
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.errors import ConfigError, PolicyError

PRESET = {"method": "best_of_n", "n": 4, "sampling": {"temperature": 0.6, "top_p": 0.9}}
BARE = {"method": "best_of_n", "n": 4}
TRUNCATED = {"top_p": 0.1, "top_k": 5, "min_p": 0.2}


def server(preset: dict[str, Any]) -> AlignmentServer:
    settings = Settings.model_validate(
        {
            "model": "demo",
            "rewards": {"brief": {"kind": "length", "target": 8}},
            "default_reward": "brief",
            "presets": {"best": preset},
        }
    )
    return AlignmentServer.build(settings, {}, {})


def params(preset: dict[str, Any], defaults: dict[str, Any], **fields: Any) -> Any:
    """vLLM's sampling parameters of a chat request with the preset, and their request."""
    sent = {"model": "demo:best", "messages": [{"role": "user", "content": "Hello"}], **fields}
    request = AlignedChatCompletionRequest.model_validate(sent)
    context = request.resolve(server(preset))
    assert context is not None
    return request.to_sampling_params(16, defaults), context


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 0.0, **TRUNCATED}, {}])
def test_sampling_of_the_preset_replaces_temperature_zero(fields: dict[str, Any]) -> None:
    defaults = {**TRUNCATED, "temperature": 0.0}  # as in a model's generation_config.json
    sampled, context = params(PRESET, defaults, **fields)
    assert (sampled.temperature, sampled.top_p, sampled.seed) == (0.6, 0.9, 0)
    assert (sampled.top_k, sampled.min_p) == (0, 0.0)
    used = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "min_p": 0.0, "seed": 0}
    assert context.sampling == used


@pytest.mark.parametrize(
    ("defaults", "fields"), [({}, {}), ({"temperature": 0.0}, {"temperature": 0.5})]
)
def test_temperature_above_zero_of_request_or_model_is_kept(
    defaults: dict[str, Any], fields: dict[str, Any]
) -> None:
    sampled, context = params(PRESET, defaults, **fields)
    assert (sampled.temperature, sampled.seed) == (fields.get("temperature", 1.0), None)
    assert context.sampling is None


@pytest.mark.parametrize("defaults", [{}, {"temperature": 0.0}])
def test_temperature_zero_without_policy_sampling_names_the_remedy(
    defaults: dict[str, Any],
) -> None:
    fields = {} if defaults else {"temperature": 0}
    with pytest.raises(PolicyError) as caught:
        params(BARE, defaults, **fields)
    assert str(caught.value) == (
        "temperature is 0; all 4 candidates would be the same, so method 'best_of_n' needs a "
        "temperature above 0; a policy with 'sampling', such as {'temperature': 1}, accepts "
        "temperature 0"
    )


def test_invalid_sampling_of_a_preset_is_named_with_its_range() -> None:
    with pytest.raises(ConfigError) as caught:
        server({**BARE, "sampling": {"temperature": 0}})
    assert str(caught.value) == "presets.best.sampling.temperature is 0; it must be at least 0.01"
