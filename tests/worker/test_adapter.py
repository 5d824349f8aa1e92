"""Under a LoRA adapter values are those of the adapted model, at the end of a response too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_model
from tests.server.served import Served, demo_settings
from tests.server.tilted import TOKENWISE

from . import adapter
from .test_parity import BEST_OF_N, BLOCKWISE, Reference, tokens

MODELS = ("demo", "other")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "other"
    adapter.write(load_model(MODEL_DIR), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo without members, with an adapter."""
    flags = ["--enable-lora", "--max-lora-rank", str(adapter.RANK), "--lora-modules"]
    settings = demo_settings(presets={}) | {"members": {}}
    with Served(settings, tmp_path_factory.mktemp("lora"), [*flags, f"other={lora}"]) as served:
        yield served


@pytest.fixture(scope="module")
def references(lora: Path) -> dict[str, Reference]:
    return {"demo": Reference(), "other": Reference(lora)}


@pytest.mark.parametrize("policy", [BEST_OF_N, {**BLOCKWISE, "m": 8}, TOKENWISE])
@pytest.mark.parametrize("model", MODELS)
def test_values_under_an_adapter_are_those_of_the_adapted_model(
    adapted: Served, references: dict[str, Reference], model: str, policy: dict[str, Any]
) -> None:
    body = {
        **{"model": model, "prompt": tokens(40, seed=13), "max_tokens": 24, "n": 4},
        **{"return_token_ids": True, "alignment": {**policy, "report": "trace"}},
    }
    with adapted.client() as http:
        answer = http.post("/v1/completions", json=body).raise_for_status().json()
    for choice, report in zip(answer["choices"], answer["alignment"]["choices"], strict=True):
        prompt, written = choice["prompt_token_ids"], choice["token_ids"]
        references[model].check(prompt, written, report, policy.get("m", 24))


def test_adapter_changes_the_values(references: dict[str, Reference]) -> None:
    """Or the other test would show nothing."""
    base, other = (references[model].values(tokens(40, seed=13)) for model in MODELS)
    assert max(abs(a - b) for a, b in zip(base, other, strict=True)) > 0.05
