"""Model ids with a colon: presets, and ids that only look like one."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from cdserve.api.models import check_preset
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.decoders import BestOfNPolicy
from cdserve.errors import ModelError
from cdserve.scoring import Extractors

SAFE = BestOfNPolicy(method="best_of_n", n=2)


def server(name: str) -> AlignmentServer:
    return AlignmentServer(
        settings=Settings(model="./m", served_model_name=name),
        decoders={},
        rewards={},
        extractors=Extractors.load({}, "log"),
        q_columns={},
        presets={"safe": SAFE, "8b:safe": SAFE},
        methods={},
    )


def refusing(code: int | None) -> Any:
    """State of an app whose vLLM accepts every model, or answers with an error."""

    async def _check_model(request: Any) -> ErrorResponse | None:
        info = ErrorInfo(message="no", type="Error", code=code or 0)
        return None if code is None else ErrorResponse(error=info)

    return SimpleNamespace(openai_serving_completion=SimpleNamespace(_check_model=_check_model))


@pytest.mark.parametrize(
    ("name", "model", "preset"),
    [
        ("demo", "demo:safe", "safe"),
        ("demo", "demo:8b:safe", "8b:safe"),
        ("llama:8b", "llama:8b:safe", "safe"),
        ("llama:8b", "llama:safe", None),
        ("llama:8b", "llama:8b", None),
        ("demo", "demo", None),
        ("demo", "demo:", None),
        ("demo", None, None),
    ],
)
def test_preset_of_splits_after_the_whole_model_name(
    name: str, model: str | None, preset: str | None
) -> None:
    assert server(name).preset_of(model) == preset


@pytest.mark.parametrize("model", ["demo", "demo:safe", "other:safe", "", None])
async def test_check_preset_does_not_look_up_other_model_ids(model: str | None) -> None:
    await check_preset(SimpleNamespace(model=model), server("demo"), refusing(404))


async def test_unknown_preset_error_lists_the_presets() -> None:
    with pytest.raises(ModelError, match=r"'demo:no'.* presets demo:safe, demo:8b:safe$"):
        await check_preset(SimpleNamespace(model="demo:no"), server("demo"), refusing(404))


@pytest.mark.parametrize("code", [None, 400])
async def test_check_preset_leaves_models_and_adapters_to_vllm(code: int | None) -> None:
    await check_preset(SimpleNamespace(model="demo:no"), server("demo"), refusing(code))
