"""LangChain's chat model under a policy, in a chain, streamed, and by preset.

Requires langchain-openai. OPENAI_BASE_URL is the server's URL (default: http://localhost:8000/v1),
OPENAI_API_KEY its API key. ChatOpenAI drops fields that OpenAI's API does not have, including the
`alignment` report; AlignedChatOpenAI keeps it in `response_metadata`.
"""

import os
from typing import Any

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

SERVER = {
    "base_url": os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    "api_key": os.environ.get("OPENAI_API_KEY", "-"),
    "max_tokens": 120,
    "temperature": 0.8,
}
PROMPT = ChatPromptTemplate.from_messages([("user", 'Write a short review of the film "{title}".')])


class AlignedChatOpenAI(ChatOpenAI):
    """ChatOpenAI that keeps the report, in ``response_metadata["alignment"]``."""

    def _create_chat_result(self, response: Any, generation_info: dict | None = None) -> Any:
        result = super()._create_chat_result(response, generation_info)
        if report := getattr(response, "alignment", None):
            result.generations[0].message.response_metadata["alignment"] = report
        return result

    def _convert_chunk_to_generation_chunk(self, chunk: dict, *args: Any) -> Any:
        generation = super()._convert_chunk_to_generation_chunk(chunk, *args)
        if generation is not None and "alignment" in chunk:
            generation.message.response_metadata["alignment"] = chunk["alignment"]
        return generation


def main() -> None:
    """Sends requests to the demo."""
    policy = {"method": "blockwise_cd", "k": 4, "m": 32}
    blockwise = AlignedChatOpenAI(model="demo", extra_body={"alignment": policy}, **SERVER)
    print("blockwise:", end=" ")
    for chunk in (PROMPT | blockwise).stream({"title": "Second Summer"}):
        print(chunk.content, end="", flush=True)
        if report := chunk.response_metadata.get("alignment"):
            print(f" (score {report['score']:.2f})", end="")

    preset = AlignedChatOpenAI(model="demo:best-of-8", **SERVER)
    answers = (PROMPT | preset).batch([{"title": "Static"}, {"title": "Northbound"}])
    for answer in answers:
        print("\nbest-of-8:", answer.content)
        print(f"  score {answer.response_metadata['alignment']['score']:.2f}")


if __name__ == "__main__":
    main()
