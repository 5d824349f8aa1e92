"""A folder of records belongs to one way of asking, which its settings file says."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cdserve.client.settings import check_settings, read_settings
from cdserve.errors import safe_repr
from cdserve.evaluation.job import Job

_LONGEST = 120


def check(
    job: Job, model: str, rewards: Mapping[str, str | None], policies: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of the folder, once it is seen that it is this evaluation's, or nobody's.

    Policies, prompts of the file and draws may come to it.

    Args:
        model: its id on the server.
        rewards: the names of ``reward`` and ``gold``.
        policies: what each of them is, presets resolved.

    Raises:
        ConfigError: the folder's records were asked for otherwise; with the setting and both
            values.
    """
    wanted = {
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
        check_settings(job.out, kept, wanted)
        known = kept.get("policies", {})
        check_settings(job.out, _labelled(known), _labelled(policies, of=known))
        policies = {**known, **policies}
    return {**wanted, "policies": dict(policies)}


def _labelled(policies: Mapping[str, Any], of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {f"policy {safe_repr(n)}": one for n, one in policies.items() if of is None or n in of}


def journal_of(out: Path, policy: str) -> Path:
    """The file of a policy's records: its name, with what file names cannot have written as %XX."""
    name = quote(policy, safe=" =,+")
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(policy.encode()).hexdigest()[:16]}"
    return out / "records" / f"{name}.jsonl"
