"""LangChain's chat model under a policy, in a chain, streamed, and by preset.

Requires langchain-openai. OPENAI_BASE_URL is the server's URL (default: http://localhost:8000/v1),
OPENAI_API_KEY its API key. LangChain drops fields that OpenAI's API does not have, including the
`alignment` report; use OpenAI's client to read it.
"""

import os

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

SERVER = {
    "base_url": os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    "api_key": os.environ.get("OPENAI_API_KEY", "-"),
    "max_tokens": 120,
    "temperature": 0.8,
}
PROMPT = ChatPromptTemplate.from_messages([("user", 'Write a short review of the film "{title}".')])


def main() -> None:
    """Sends requests to the demo."""
    policy = {"method": "blockwise_cd", "k": 4, "m": 32}
    blockwise = ChatOpenAI(model="demo", extra_body={"alignment": policy}, **SERVER)
    print("blockwise:", end=" ")
    for chunk in (PROMPT | blockwise).stream({"title": "Second Summer"}):
        print(chunk.content, end="", flush=True)

    preset = ChatOpenAI(model="demo:best-of-8", **SERVER)
    answers = (PROMPT | preset).batch([{"title": "Static"}, {"title": "Northbound"}])
    for answer in answers:
        print("\nbest-of-8:", answer.content)


if __name__ == "__main__":
    main()
