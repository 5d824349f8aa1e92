"""All that an evaluation finds, as ``results.json`` has it."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdserve import kl
from cdserve.client.policies import NamedPolicy
from cdserve.evaluation.job import BASE
from cdserve.evaluation.overoptimisation import (
    Alarm,
    CurvePoint,
    Fit,
    against_base,
    along,
    best_of_n_curve,
    fit,
)
from cdserve.evaluation.records import Record
from cdserve.evaluation.summary import Figures, gold_of, summarise

Records = Mapping[str, Sequence[Record]]

_LEAST_N, _MOST_N = 16, 2**20
"""How far the curve of best-of-n goes at least, and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What is found.

    Attributes:
        command: that asked for it.
        settings: how answers were asked for; ``model``, ``reward`` and ``gold`` among them.
        prompts, draws: how many prompts, and answers to each.
        policies: figures by policy, the base first.
        sweeps: by name, the policies that are its points.
        points: what a sweep sets each of its policies to, by policy.
        alarms: over-optimisation; None where there is no held-out reward.
        fits: of best-of-n sweeps, by sweep.
        best_of_n: what theory says of it.
    """

    command: str
    settings: Mapping[str, Any]
    prompts: int
    draws: int
    policies: Mapping[str, Figures]
    sweeps: Mapping[str, Sequence[str]]
    points: Mapping[str, str]
    alarms: Sequence[Alarm] | None
    fits: Mapping[str, Fit]
    best_of_n: Sequence[CurvePoint]

    def write(self, path: Path) -> None:
        """Writes all of it as JSON."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def results(
    policies: Sequence[NamedPolicy],
    records: Records,
    *,
    command: str,
    settings: Mapping[str, Any],
    draws: int,
) -> Results:
    """The results of all answers.

    Args:
        policies: without the base.
        records: by policy, the base's first.
        settings: as ``settings.check`` returns them.
    """
    base = records[BASE]
    definitions = settings["policies"]
    figures = {
        name: summarise(found, base, plain=definitions[name] == {"method": "none"})
        for name, found in records.items()
    }
    sweeps: defaultdict[str, list[str]] = defaultdict(list)
    for policy in policies:
        if policy.sweep is not None:
            sweeps[policy.sweep].append(policy.name)
    has_gold = gold_of(base) is not None
    return Results(
        command=command,
        settings=settings,
        prompts=figures[BASE].prompts,
        draws=draws,
        policies=figures,
        sweeps=dict(sweeps),
        points={policy.name: policy.setting for policy in policies if policy.sweep is not None},
        alarms=_alarms(records, figures, sweeps) if has_gold else None,
        fits=_fits(figures, sweeps, definitions) if has_gold else {},
        best_of_n=_curve(records, figures),
    )


def _alarms(
    records: Records, figures: Mapping[str, Figures], sweeps: Mapping[str, Sequence[str]]
) -> list[Alarm]:
    base = records[BASE]
    found = [against_base(name, made, base) for name, made in records.items() if name != BASE]
    for names in sweeps.values():
        points = [
            (name, divergence.estimate.mean, records[name])
            for name in names
            if (divergence := figures[name].kl) is not None
        ]
        found += along(points)
    return [alarm for alarm in found if alarm is not None]


def _fits(
    figures: Mapping[str, Figures],
    sweeps: Mapping[str, Sequence[str]],
    definitions: Mapping[str, Any],
) -> dict[str, Fit]:
    made: dict[str, Fit] = {}
    for sweep, names in sweeps.items():
        if not all(is_best_of_n(definitions[name]) for name in names):
            continue
        points = [
            (found.bound.mean, gold.gain.mean)
            for name in names
            if (found := figures[name].kl) is not None and (gold := figures[name].gold) is not None
        ]
        if (fitted := fit(points)) is not None:
            made[sweep] = fitted
    return made


def is_best_of_n(policy: Mapping[str, Any]) -> bool:
    """Whether its candidates are i.i.d. draws of the base, and it is drawn with best-of-n's KL."""
    return policy["method"] == "best_of_n" and not policy.get("proposal")


def _curve(records: Records, figures: Mapping[str, Figures]) -> list[CurvePoint]:
    """As far as the farthest policy's KL, and as the base's draws and best-of-n's candidates go."""
    pools: defaultdict[int, list[float]] = defaultdict(list)
    for name, found in records.items():
        for record in found:
            pools[record.prompt] += [record.reward] if name == BASE else record.pool or ()
    farthest = max(made.kl.estimate.mean for made in figures.values() if made.kl is not None)
    reached = kl.effective_n(max(0.0, farthest))
    return best_of_n_curve(round(min(max(_LEAST_N, reached), _MOST_N)), pools)
