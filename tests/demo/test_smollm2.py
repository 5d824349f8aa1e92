"""``cdserve serve`` without settings, from an empty cache: the demo of a real language model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from cdserve.client.server import healthy
from cdserve.demo import DEMO_DIR
from tests.server.served import free_port
from tests.waiting import HANG_SECONDS, until

CONVERTED = "converting the model"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
ASKED = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def demo(cache: Path) -> Iterator[OpenAI]:
    """A client of the demo."""
    port = free_port()
    log = cache / "server.log"
    command = [sys.executable, "-m", "cdserve", "serve", "--port", str(port)]
    with log.open("w") as output:
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: healthy(url) or process.poll() is not None, "the demo")
        assert process.poll() is None, log.read_text()
        assert CONVERTED in log.read_text()
        with OpenAI(base_url=f"{url}/v1", api_key="-", timeout=HANG_SECONDS) as client:
            yield client
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


def test_demo_answers_in_english(demo: OpenAI) -> None:
    answer = demo.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the sea?"}],
        temperature=0,
        max_tokens=12,
    )
    assert answer.choices[0].message.content.startswith("The sea is a vast")


def test_blockwise_decoding_chooses_the_blocks_of_the_highest_value(demo: OpenAI) -> None:
    answer = demo.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": 'Write a short review of the film "Small Hours".'}],
        max_tokens=48,
        seed=1,
        extra_body={"alignment": {"method": "blockwise_cd", "k": 4, "m": 16, "report": "trace"}},
    )
    trace = answer.alignment["trace"]  # type: ignore[attr-defined]
    assert trace
    for decision in trace:
        scores = [candidate["score"] for candidate in decision["candidates"]]
        chosen = [candidate["score"] for candidate in decision["candidates"] if candidate["chosen"]]
        assert (len(scores), chosen) == (4, [max(scores)])


def test_value_of_a_finished_text_tells_praise_from_blame(demo: OpenAI) -> None:
    praise = " A wonderful film. I loved every minute of it."
    blame = " A terrible film. I hated every minute of it, and the acting was awful."
    body = {"prompt": 'Review of the film "Static":', "responses": [praise, blame]}
    scored = demo.post("/alignment/score", body=body, cast_to=dict[str, Any])
    high, low = (response["score"] for response in scored["scores"])
    assert high > 0.6 > 0.45 > low


@pytest.mark.parametrize("policy", [{"method": "best_of_n", "n": 2}, "blockwise"], ids=str)
def test_demo_calls_a_tool_and_reads_its_result(demo: OpenAI, policy: Any) -> None:
    fields = {"model": "demo", "tools": [WEATHER], "temperature": 0.7, "seed": 1}
    fields |= {"extra_body": {"alignment": policy}}
    answer = demo.chat.completions.create(
        messages=[ASKED], tool_choice="required", max_tokens=80, **fields
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}
    assert answer.alignment["score"] > 0  # type: ignore[attr-defined]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    called = choice.message.model_dump(exclude_none=True)
    answer = demo.chat.completions.create(
        messages=[ASKED, called, result], tool_choice="auto", max_tokens=16, **fields
    )
    assert answer.choices[0].message.content


def test_template_without_tools_renders_as_the_models_own(demo: OpenAI, cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(next(cache.rglob("model.safetensors")).parent)
    system = {"role": "system", "content": "You write reviews.\n"}
    template = (DEMO_DIR / "chat_template.jinja").read_text()
    for chat in ([ASKED], [system, ASKED, {"role": "assistant", "content": " Sunny. "}, ASKED]):
        for add in (False, True):
            own, ours = (
                tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=add, chat_template=source
                )
                for source in (None, template)
            )
            assert ours == own


def test_second_start_converts_nothing(demo: OpenAI, cache: Path) -> None:
    weights = next(cache.rglob("model.safetensors"))
    written = weights.stat().st_mtime_ns
    code = "from cdserve import demo; print(demo.settings('smollm2').changes[0])"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"model={weights.parent}"
    assert weights.stat().st_mtime_ns == written
