"""Prompt results, journal records and jobs for these tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdserve.client.answers import Sampling
from cdserve.client.policies import NamedPolicy
from cdserve.client.server import ServerArgs
from cdserve.collection.formats import Filters
from cdserve.collection.job import CollectionJob
from cdserve.collection.prompt_result import PromptResult, Response
from cdserve.prompts import Prompt

TEXT = "Film review: The Glass Harbour."
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Write a review of the compact kettle."},
]


def response(
    text: str, score: float, finish_reason: str = "stop", chosen: bool = False
) -> Response:
    """A response with a single reward."""
    return Response(
        text=text,
        tokens=len(text.split()) + 1,
        finish_reason=finish_reason,
        score=score,
        rewards={"good": score},
        logprob=-1.5,
        chosen=chosen,
    )


def result(*responses: Response, prompt: Prompt = TEXT, index: int = 3) -> PromptResult:
    """A prompt with these responses."""
    return PromptResult(
        index=index,
        prompt=prompt,
        seed=17,
        responses=responses,
        kl={"bound": 0.4, "estimate": 0.3, "estimator": "epsilon_n"},
        accepted=None,
    )


def traced(text: str, score: float, *, chosen: bool = False, **fields: Any) -> dict[str, Any]:
    """A candidate of a report's trace."""
    return {
        "text": text,
        "tokens": len(text.split()),
        "finish_reason": "stop",
        "logprob": -2.0,
        "score": score,
        "rewards": {"good": score},
        "chosen": chosen,
    } | fields


def record(method: str, *decisions: list[dict[str, Any]], **report: Any) -> dict[str, Any]:
    """A journal record."""
    last = next(candidate for candidate in decisions[-1] if candidate["chosen"])
    return {
        "index": 3,
        "prompt": TEXT,
        "seed": 17,
        "report": {
            "method": method,
            "score": last["score"],
            "rewards": last["rewards"],
            "kl": {"bound": 0.4, "estimate": 0.3, "estimator": "epsilon_n", "flag": None},
            "trace": [{"kl": {}, "candidates": list(candidates)} for candidates in decisions],
        }
        | report,
    }


SETTINGS = {
    "model": "demo",
    "alignment": {"method": "best_of_n", "n": 2},
    "max_tokens": 8,
    "temperature": 1.0,
    "top_p": 1.0,
}


def job(
    out: Path, prompts: Sequence[Prompt], formats: Sequence[str], **changes: Any
) -> CollectionJob:
    """A collection whose server is never called."""
    return CollectionJob(
        **{
            "prompts": prompts,
            "mixed": len({isinstance(prompt, str) for prompt in prompts}) == 2,
            "out": out,
            "policy": NamedPolicy("two", {"method": "best_of_n", "n": 2}),
            "sampling": Sampling(max_tokens=8),
            "seed": 0,
            "formats": formats,
            "filters": Filters(),
            "shard_size": 100,
            "server": ServerArgs(
                url=None,
                settings=None,
                flags=(),
                model=None,
                api_key="-",
                concurrency=1,
            ),
        }
        | changes
    )
