"""Part 4: no step waits for the device because of cdserve.

vLLM's `VLLM_GPU_SYNC_CHECK=warn` arms PyTorch's warnings of synchronising calls, and its own of
copies that block, within `execute_model` and `sample_tokens` once the start is over. The probe
keeps the stack of each. What plain requests show too is vLLM's own.
"""

import os
from typing import Any

from .requests import BUDGET, MIX, MIXED_TILT, REWARDS, TILT, body
from .served import Setup, demo, probe
from .served import at_once as ask

_PROMPTS, _TOKENS = 8, 24
PHASES: dict[str, list[Any]] = {
    "plain": [None],
    "values": [{"method": "best_of_n", "n": 4}, {"method": "blockwise_cd", "k": 4, "m": 8}],
    "tilt": [TILT],
    "mix": [MIX],
    "mix and tilt": [MIXED_TILT],
    "tilt, top-k": [{**TILT, "top_k": 20}],
    "tilt, budget": [{**TILT, "kl_budget": BUDGET}],
    "log-likelihoods": [{"method": "best_of_n", "n": 4, "rewards": REWARDS}],
}


def check(setup: Setup) -> dict[str, Any]:
    """Records the synchronisations of each kind of request on one server."""
    if not setup.cuda:
        return {"ok": None, "skipped": "vLLM checks synchronisations on a GPU alone"}
    os.environ["VLLM_GPU_SYNC_CHECK"] = "warn"
    with demo(setup) as url:
        probe(url, "probe_syncs")
        probe(url, "probe_wait")
        control = probe(url, "probe_synced")
        seen = {name: synced(url, policies) for name, policies in PHASES.items()}
    return {**verdict(control, seen), "engine's own": seen["plain"]}


def synced(url: str, policies: list[Any]) -> list[dict[str, Any]]:
    """What requests of these policies show, the second time that they are sent."""
    fields = {"max_tokens": _TOKENS, "ignore_eos": True}
    bodies = [
        body(policy, prompt=[100 + 50 * i + j for j in range(9 + i)], **fields)
        for i in range(_PROMPTS)
        for policy in policies
    ]
    ask(url, bodies)
    probe(url, "probe_syncs")
    ask(url, bodies)
    found: list[dict[str, Any]] = probe(url, "probe_synced")
    return found


def verdict(control: list[dict[str, Any]], seen: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Which lines synchronise that plain requests do not come by."""
    own = {one["at"] for one in seen["plain"]}
    added = {
        name: [one for one in found if one["at"] not in own]
        for name, found in seen.items()
        if name != "plain"
    }
    wrong = [
        f"{name}: {one['at']} synchronises, {one['times']} times"
        for name in PHASES
        for one in added.get(name, [])
    ]
    if not control:
        wrong.append("vLLM's check did not see a synchronisation made on purpose")
    return {"ok": not wrong, "wrong": wrong, "added": added}
