"""Pydantic AI: an agent on chat, with a subclass that keeps the report by the library's hooks."""

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIStreamedResponse
from pydantic_ai.providers.openai import OpenAIProvider
from shared import ASKED, KEY, URL, policy, show


class AlignedStream(OpenAIStreamedResponse):
    """Keeps the report of a streamed answer."""

    def _map_provider_details(self, chunk: Any) -> dict[str, Any] | None:
        details = super()._map_provider_details(chunk) or {}
        return details | (chunk.model_extra or {})


class AlignedModel(OpenAIChatModel):
    """Keeps the report in ``provider_details["alignment"]``."""

    _streamed_response_cls = AlignedStream

    def _process_provider_details(self, response: Any) -> dict[str, Any] | None:
        details = super()._process_provider_details(response) or {}
        return details | (response.model_extra or {})


async def main() -> None:
    model = AlignedModel("demo", provider=OpenAIProvider(base_url=URL, api_key=KEY))
    settings = {"max_tokens": 24, "extra_body": {"alignment": policy}}
    agent = Agent(model, model_settings=settings)
    result = await agent.run(ASKED)
    show("chat, whole", result.output, result.response.provider_details["alignment"])
    async with agent.run_stream(ASKED) as result:
        text = "".join([part async for part in result.stream_text(delta=True)])
    show("chat, streamed", text, result.response.provider_details["alignment"])


asyncio.run(main())
