"""Driver of peers with OpenAI's protocol: cdserve, vLLM with client-side selection, optillm."""

import asyncio
from typing import Any

import httpx2
from openai import AsyncOpenAI

from benchmarks.peers.driver import Answer, Method, Setting, serve, setting


class Client:
    """Requests to one server through OpenAI's client.

    Args:
        base_url: URL of the server.
        settings: settings shared by all peers.
    """

    def __init__(self, base_url: str, settings: Setting) -> None:
        self._settings = settings
        self._openai = AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="-", max_retries=0, timeout=600
        )
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=600)

    async def texts(self, prompt: str, **options: Any) -> list[str]:
        """The choices of one chat completion."""
        completion = await self._openai.chat.completions.create(
            model=self._settings.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self._settings.max_tokens,
            temperature=1.0,
            **options,
        )
        return [choice.message.content or "" for choice in completion.choices]

    async def values(self, prompt: str, responses: list[str]) -> list[float]:
        """The server's default reward of each response, from its score route."""
        messages = [{"role": "user", "content": prompt}]
        body = {"prompt": messages, "responses": responses}
        answer = await self._http.post("/v1/alignment/score", json=body)
        answer.raise_for_status()
        return [score["score"] for score in answer.json()["scores"]]

    def plain(self, policy: Any = None) -> Method:
        """A method with one choice per prompt, under a policy if there is one."""
        options = {"extra_body": {"alignment": policy}} if policy else {}

        async def answer(prompt: str) -> Answer:
            (text,) = await self.texts(prompt, **options)
            return Answer(text=text)

        return answer

    def best_of_choices(self, scorer: "Client") -> Method:
        """A method that selects the best of vLLM's ``n`` choices by a server's score route."""

        async def answer(prompt: str) -> Answer:
            texts = await self.texts(prompt, n=self._settings.k)
            values = await scorer.values(prompt, texts)
            return Answer(text=texts[values.index(max(values))])

        return answer


def methods(settings: Setting) -> dict[str, Method]:
    """The methods of this driver, by row of the table."""
    server, optillm = Client(settings.server, settings), Client(settings.optillm, settings)
    generator = Client(settings.generator, settings)
    k, m, width = settings.k, settings.m, settings.beam_width
    blocks = {"method": "blockwise_cd", "k": k, "m": m}
    return {
        "vLLM": server.plain(),
        "cdserve best_of_n": server.plain({"method": "best_of_n", "n": k}),
        "cdserve blockwise_cd": server.plain(blocks),
        "cdserve beams": server.plain({**blocks, "k": k // width, "beam_width": width}),
        "cdserve tokenwise_cd": server.plain({"method": "tokenwise_cd", "beta": settings.beta}),
        "vLLM n=K": server.best_of_choices(server),
        "vLLM n=K, two servers": generator.best_of_choices(server),
        "optillm": optillm.plain(),
        **{name: server.plain(policy) for name, policy in settings.policies.items()},
    }


if __name__ == "__main__":
    asyncio.run(serve(methods(setting())))
