"""Driver of its_hub's best-of-n, with the reward from cdserve's score route.

Runs in its_hub's environment.
"""

import asyncio
from typing import Any

import aiohttp
from its_hub import (
    AbstractOutcomeRewardModel,
    BestOfN,
    LMOrchestrator,
    OpenAICompatibleLanguageModel,
)
from its_hub.api import ChatMessage

from benchmarks.peers.driver import Answer, Setting, serve, setting


class ScoreRoute(AbstractOutcomeRewardModel):
    """The server's default reward as a reward model of its_hub.

    Args:
        server: URL of cdserve.
    """

    def __init__(self, server: str) -> None:
        self._url = f"{server}/v1/alignment/score"
        self._session: aiohttp.ClientSession | None = None

    async def ascore(self, messages: list[list[ChatMessage]], **_: Any) -> list[float]:
        """One score per conversation; all have the same prompt and end with the response."""
        self._session = self._session or aiohttp.ClientSession()
        body = {
            "prompt": [message.to_dict() for message in messages[0][:-1]],
            "responses": [conversation[-1].content or "" for conversation in messages],
        }
        async with self._session.post(self._url, json=body) as answer:
            answer.raise_for_status()
            return [score["score"] for score in (await answer.json())["scores"]]

    def score(self, messages: list[list[ChatMessage]], **_: Any) -> list[float]:
        """Synchronous version of ``ascore``."""
        return asyncio.run(self.ascore(messages))


async def main(settings: Setting) -> None:
    """Serves best-of-k by its_hub, without its limit of 32 concurrent requests."""
    model = OpenAICompatibleLanguageModel(
        endpoint=f"{settings.server}/v1",
        api_key="-",
        model_name=settings.model,
        temperature=1.0,
        max_completion_tokens=settings.max_tokens,
    )
    search = BestOfN(ScoreRoute(settings.server), orchestrator=LMOrchestrator(max_concurrency=-1))

    async def answer(prompt: str) -> Answer:
        message = await search.ainfer(model, prompt, budget=settings.k)
        return Answer(text=message["content"] or "")

    await serve({"its_hub": answer})


if __name__ == "__main__":
    asyncio.run(main(setting()))
