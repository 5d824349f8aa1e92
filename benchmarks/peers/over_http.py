"""Driver of what speaks OpenAI's protocol: cdserve, vLLM with selection here, optillm."""

import asyncio
from typing import Any

import httpx2
from openai import AsyncOpenAI

from benchmarks.peers.driver import Answer, Method, Setting, serve, setting


class Client:
    """Requests to one server, by OpenAI's client.

    Args:
        base_url: the server.
        given: what all peers are given.
    """

    def __init__(self, base_url: str, given: Setting) -> None:
        self._given = given
        self._openai = AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="-", max_retries=0, timeout=600
        )
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=600)

    async def texts(self, prompt: str, **options: Any) -> list[str]:
        """The choices of one chat completion."""
        made = await self._openai.chat.completions.create(
            model=self._given.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self._given.max_tokens,
            temperature=1.0,
            **options,
        )
        return [choice.message.content or "" for choice in made.choices]

    async def values(self, prompt: str, responses: list[str]) -> list[float]:
        """The server's default reward of each response, from its score route."""
        messages = [{"role": "user", "content": prompt}]
        body = {"prompt": messages, "responses": responses}
        answer = await self._http.post("/v1/alignment/score", json=body)
        answer.raise_for_status()
        return [one["score"] for one in answer.json()["scores"]]

    def plain(self, **policy: Any) -> Method:
        """One choice, under a policy if there is one."""
        options = {"extra_body": {"alignment": policy}} if policy else {}

        async def answer(prompt: str) -> Answer:
            (text,) = await self.texts(prompt, **options)
            return Answer(text=text)

        return answer

    async def best_of_choices(self, prompt: str) -> Answer:
        """vLLM's ``n`` choices, scored by the score route; the best is taken here."""
        texts = await self.texts(prompt, n=self._given.k)
        values = await self.values(prompt, texts)
        return Answer(text=texts[values.index(max(values))])


def methods(given: Setting) -> dict[str, Method]:
    """The rows of the table that this driver makes."""
    server, optillm = Client(given.server, given), Client(given.optillm, given)
    return {
        "vLLM": server.plain(),
        "cdserve best_of_n": server.plain(method="best_of_n", n=given.k),
        "cdserve blockwise_cd": server.plain(method="blockwise_cd", k=given.k, m=given.m),
        "cdserve tokenwise_cd": server.plain(method="tokenwise_cd", beta=given.beta),
        "vLLM n=K": server.best_of_choices,
        "optillm": optillm.plain(),
    }


if __name__ == "__main__":
    asyncio.run(serve(methods(setting())))
