"""OpenAI's Agents SDK: an agent on chat and on Responses."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from shared import ASKED, KEY, URL, policy, show

set_tracing_disabled(True)


async def main() -> None:
    client = AsyncOpenAI(base_url=URL, api_key=KEY)
    models = {"chat": OpenAIChatCompletionsModel, "Responses": OpenAIResponsesModel}
    for name, model in models.items():
        agent = Agent(
            name="reviewer",
            model=model(model="demo", openai_client=client),
            # The SDK raises on a response that reaches its maximum length.
            model_settings=ModelSettings(max_tokens=600, extra_body={"alignment": policy}),
        )
        show(f"{name}, whole", (await Runner.run(agent, ASKED)).final_output, None)
        result, report = Runner.run_streamed(agent, ASKED), None
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.completed":
                report = event.data.response.model_extra.get("alignment")
        show(f"{name}, streamed", result.final_output, report)


asyncio.run(main())
