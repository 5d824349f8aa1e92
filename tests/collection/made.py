"""Answers made up for these tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdserve.client.answers import Sampling
from cdserve.client.policies import NamedPolicy
from cdserve.collection.answered import Answered, Response
from cdserve.collection.formats import Filters
from cdserve.collection.job import Job
from cdserve.prompts import Prompt

TEXT = "Film review: The Glass Harbour."
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Write a review of the compact kettle."},
]


def response(
    text: str, score: float, finish_reason: str = "stop", chosen: bool = False
) -> Response:
    """One with a single reward."""
    return Response(
        text=text,
        tokens=len(text.split()) + 1,
        finish_reason=finish_reason,
        score=score,
        rewards={"good": score},
        logprob=-1.5,
        chosen=chosen,
    )


def answered(*responses: Response, prompt: Prompt = TEXT, index: int = 3) -> Answered:
    """An answer with these responses."""
    return Answered(
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
    """A record of the journal."""
    last = next(one for one in decisions[-1] if one["chosen"])
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


def job(out: Path, prompts: Sequence[Prompt], formats: Sequence[str], **changes: Any) -> Job:
    """A collection that nothing is asked for."""
    return Job(
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
            "url": None,
            "config": Path("none.yaml"),
            "flags": (),
            "model": None,
            "api_key": "-",
            "concurrency": 1,
        }
        | changes
    )
