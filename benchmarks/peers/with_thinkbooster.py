"""Driver of ThinkBooster's beam search, with the reward from cdserve's score route.

Runs in ThinkBooster's environment. The objects are those that its REST service makes per request
for an OpenAI-compatible server, except for the process reward model, which that service loads.
"""

import asyncio
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from thinkbooster.generators.api import StepCandidateGeneratorThroughAPI
from thinkbooster.generators.base import StepCandidate, convert_trajectory_to_string
from thinkbooster.models import BlackboxModelWithStreaming
from thinkbooster.scorers.step_scorer_base import CandidateScore, StepScorerBase
from thinkbooster.step_boundary_detectors import ThinkingMarkerDetector
from thinkbooster.strategies.strategy_beam_search import StrategyBeamSearch

from benchmarks.peers.driver import Answer, Setting, serve, setting

Chat = list[dict[str, str]]

_RESERVE = 200
"""Tokens that the beam search leaves unused at the end of a response."""
_AT_ONCE = 64
"""Most requests at the same time; each blocks a thread."""


class Blocks(ThinkingMarkerDetector):
    """Steps of m tokens, instead of steps that end before words such as "then"."""

    def __init__(self, m: int) -> None:
        super().__init__(min_step_tokens=m, max_step_tokens=m)

    def is_step_complete(self, generated_text: str, token_count: int | None = None) -> bool:
        """False: ``max_tokens`` ends a step."""
        return False

    def extract_step_text(self, generated_text: str) -> str:
        """The whole text, including the white space at its ends."""
        return generated_text


class ScoreRoute(StepScorerBase):
    """The server's default reward, a value head, as a process reward model of ThinkBooster.

    Args:
        server: URL of cdserve.
    """

    prm_model = "score route"
    """An attribute of all process reward models of ThinkBooster."""

    def __init__(self, server: str) -> None:
        super().__init__("score route")
        self._http = httpx.Client(base_url=server, timeout=600)

    def score_candidates_detailed(
        self, chat: Chat, candidates: list[str], **_: Any
    ) -> list[CandidateScore]:
        raise NotImplementedError("beam search scores trajectories only")

    def score_trajectories_batch(
        self, chats: Sequence[Chat], trajectories: Sequence[list[StepCandidate]], **_: Any
    ) -> list[list[float]]:
        """The value of each trajectory, in one request; all belong to the same chat."""
        responses = [convert_trajectory_to_string(trajectory) for trajectory in trajectories]
        body = {"prompt": chats[0], "responses": responses, "per_token": True}
        answer = self._http.post("/v1/alignment/score", json=body).raise_for_status()
        scores = []
        for trajectory, score in zip(trajectories, answer.json()["scores"], strict=True):
            (values,) = score["per_token"].values()
            # The last value is that after EOS.
            scores.append([values[-1 if trajectory[-1].is_trajectory_complete else -2]])
        return scores


class BeamSearch:
    """Answers by ThinkBooster's beam search.

    Args:
        settings: settings shared by all peers.
    """

    def __init__(self, settings: Setting) -> None:
        self._settings = settings
        self._scorer = ScoreRoute(settings.server)
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._model = BlackboxModelWithStreaming(
            openai_api_key="-", model_path=settings.model, base_url=f"{settings.server}/v1"
        )
        _continue_answers(self._model.client)

    async def answer(self, prompt: str) -> Answer:
        """The answer to a user message."""
        loop = asyncio.get_running_loop()
        return Answer(text=await loop.run_in_executor(self._threads, self._search, prompt))

    def _search(self, prompt: str) -> str:
        settings = self._settings
        sys.modules["tiktoken"] = None  # type: ignore[assignment]  # it downloads a vocabulary
        generator = StepCandidateGeneratorThroughAPI(
            model=self._model,
            detector=Blocks(settings.m),
            max_new_tokens=settings.max_tokens,
            temperature=1.0,
            supports_logprobs=False,
        )
        search = StrategyBeamSearch(
            step_generator=generator,
            scorer=self._scorer,
            beam_size=settings.beam_width,
            candidates_per_beam=settings.k // settings.beam_width,
            max_steps=math.ceil((settings.max_tokens + _RESERVE) / settings.m),
            aggregation="last",
        )
        text: str = search.generate_trajectory([{"role": "user", "content": prompt}])["trajectory"]
        return text


def _continue_answers(client: Any) -> None:
    """Makes vLLM continue an unfinished answer, for which it needs two fields."""
    create = client.chat.completions.create

    def continuing(**body: Any) -> Any:
        unfinished = body["messages"][-1]["role"] == "assistant"
        fields = {"continue_final_message": unfinished, "add_generation_prompt": not unfinished}
        return create(**body, extra_body=fields)

    client.chat.completions.create = continuing


if __name__ == "__main__":
    asyncio.run(serve({"ThinkBooster": BeamSearch(setting()).answer}))
