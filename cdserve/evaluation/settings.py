"""Settings of a folder of records: all its answers are drawn under the same settings."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cdserve.client.settings import check_settings, read_settings
from cdserve.errors import safe_repr
from cdserve.evaluation.job import EvaluationJob

_LONGEST = 120


def check(
    job: EvaluationJob, model: str, rewards: Mapping[str, str | None], policies: Mapping[str, Any]
) -> dict[str, Any]:
    """Checks that the folder is new or has this evaluation's settings, and returns the settings.

    Policies, further prompts of the same file, and draws may be added to a folder.

    Args:
        model: model id on the server.
        rewards: the names of ``reward`` and ``gold``.
        policies: the policies by name, with presets resolved.

    Raises:
        ConfigError: a setting of the folder's records differs; names the setting and both values.
    """
    current = {
        "model": model,
        "prompts_sha256": hashlib.sha256(job.prompts.read_bytes()).hexdigest(),
        **rewards,
        "max_tokens": job.sampling.max_tokens,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "concurrency": job.concurrency,
        "seed": job.seed,
    }
    kept = read_settings(job.out)
    if kept is not None:
        check_settings(job.out, kept, current)
        previous = kept.get("policies", {})
        check_settings(job.out, _labelled(previous), _labelled(policies, only=previous))
        policies = {**previous, **policies}
    return {**current, "policies": dict(policies)}


def _labelled(policies: Mapping[str, Any], only: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        f"policy {safe_repr(name)}": policy
        for name, policy in policies.items()
        if only is None or name in only
    }


def journal_of(out: Path, policy: str) -> Path:
    """The file of a policy's records, named after the policy with unsafe characters as %XX."""
    name = quote(policy, safe=" =,+")
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(policy.encode()).hexdigest()[:16]}"
    return out / "records" / f"{name}.jsonl"
