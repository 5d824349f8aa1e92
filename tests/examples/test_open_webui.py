"""Open WebUI's requests with a preset's model id, and the Compose file."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "examples" / "open_webui" / "compose.yaml"
HEADERS = {"authorization": "Bearer none"}


def test_model_list_includes_presets(http: httpx2.Client) -> None:
    models = http.get("/v1/models", headers=HEADERS).json()["data"]
    assert {"demo", "demo:blockwise", "demo:best-of-8"} <= {model["id"] for model in models}


def test_preset_answers_a_streamed_chat(http: httpx2.Client) -> None:
    message = {"role": "user", "content": 'Write a short review of the film "Second Summer".'}
    body = {
        "model": "demo:blockwise",
        "messages": [message],
        "max_tokens": 80,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = http.post("/v1/chat/completions", json=body, headers=HEADERS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = (line[6:] for line in answer.text.splitlines() if line.startswith("data: "))
    assert done == "[DONE]"
    events = [json.loads(chunk) for chunk in chunks]
    assert {event["model"] for event in events} == {"demo:blockwise"}
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas).strip()
    assert events[-1]["usage"]["completion_tokens"] > 0


def test_base_model_writes_chat_titles(http: httpx2.Client) -> None:
    task = yaml.safe_load(COMPOSE.read_text())["services"]["open-webui"]["environment"]
    message = {"role": "user", "content": "A title, please."}
    body = {"model": task["TASK_MODEL_EXTERNAL"], "messages": [message], "max_tokens": 8}
    answer = http.post("/v1/chat/completions", json=body, headers=HEADERS).json()
    assert answer["choices"][0]["message"]["content"]
    assert "alignment" not in answer


def test_compose_file_is_valid_on_top_of_the_stack() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([checker, "--builtin-schema", "vendor.compose-spec", COMPOSE], check=True)
    (service,) = yaml.safe_load(COMPOSE.read_text())["services"].values()
    stack = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    assert set(service["depends_on"]) <= set(stack["services"])
    assert service["environment"]["OPENAI_API_BASE_URL"] == "http://cdserve:8000/v1"
