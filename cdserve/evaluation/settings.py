"""A folder of records belongs to one way of asking, which its settings file says."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cdserve.errors import ConfigError, shown
from cdserve.evaluation.job import Job

_FILE = "settings.json"
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
    found = _read(job.out / _FILE)
    if found is not None:
        known = found.get("policies", {})
        for name, value in wanted.items():
            _same(job.out, name, found.get(name), value)
        for name in policies.keys() & known.keys():
            _same(job.out, f"policy {shown(name)}", known[name], policies[name])
        policies = {**known, **policies}
    return {**wanted, "policies": dict(policies)}


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder the evaluation's of these settings."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (out / _FILE).write_text(text + "\n", encoding="utf-8")


def journal_of(out: Path, policy: str) -> Path:
    """The file of a policy's records: its name, with what file names cannot have written as %XX."""
    name = quote(policy, safe=" =,+")
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(policy.encode()).hexdigest()[:16]}"
    return out / "records" / f"{name}.jsonl"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is {shown(found)}, no settings; name another --out")
    return found


def _same(out: Path, name: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ConfigError(
            f"--out {out} was made with {name} {shown(found)}, not {shown(wanted)}: name another "
            "folder"
        )
