"""Results of an evaluation, as in ``results.json``."""

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
"""Bounds of the largest n of the best-of-n curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Results of an evaluation.

    Attributes:
        command: the command line.
        settings: settings of the answers, including ``model``, ``reward`` and ``gold``.
        prompts: number of prompts.
        draws: number of answers per prompt and policy.
        policies: figures by policy, the base first.
        sweeps: names of a sweep's policies, by sweep.
        points: a sweep's setting of a policy, such as ``n=4``, by policy.
        alarms: over-optimised policies; None without a held-out reward.
        fits: fits of over-optimisation, by best-of-n sweep.
        best_of_n: theoretical curve of best-of-n.
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
        """Writes the results as JSON."""
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
    """The results of the recorded answers.

    Args:
        policies: the policies without the base.
        records: answers by policy, the base first.
        settings: the return value of ``settings.check``.
    """
    base = records[BASE]
    definitions = settings["policies"]
    figures = {
        name: summarise(answers, base, plain=definitions[name] == {"method": "none"})
        for name, answers in records.items()
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
    alarms = [
        against_base(name, answers, base) for name, answers in records.items() if name != BASE
    ]
    for names in sweeps.values():
        points = [
            (name, divergence.estimate.mean, records[name])
            for name in names
            if (divergence := figures[name].kl) is not None
        ]
        alarms += along(points)
    return [alarm for alarm in alarms if alarm is not None]


def _fits(
    figures: Mapping[str, Figures],
    sweeps: Mapping[str, Sequence[str]],
    definitions: Mapping[str, Any],
) -> dict[str, Fit]:
    fits: dict[str, Fit] = {}
    for sweep, names in sweeps.items():
        if not all(is_best_of_n(definitions[name]) for name in names):
            continue
        points = [
            (divergence.bound.mean, gold.gain.mean)
            for name in names
            if (divergence := figures[name].kl) is not None
            and (gold := figures[name].gold) is not None
        ]
        if (fitted := fit(points)) is not None:
            fits[sweep] = fitted
    return fits


def is_best_of_n(policy: Mapping[str, Any]) -> bool:
    """Whether the candidates are i.i.d. draws of the base, so that best-of-n theory applies."""
    changes = ("proposal", "stop", "race")
    return policy["method"] == "best_of_n" and not any(map(policy.get, changes))


def _curve(records: Records, figures: Mapping[str, Figures]) -> list[CurvePoint]:
    """Best-of-n in theory, up to the n with the largest KL of any policy.

    The pools are the answers of the base and the candidates of best-of-n policies.
    """
    pools: defaultdict[int, list[float]] = defaultdict(list)
    for name, answers in records.items():
        for record in answers:
            pools[record.prompt] += [record.reward] if name == BASE else record.pool or ()
    largest_kl = max(f.kl.estimate.mean for f in figures.values() if f.kl is not None)
    largest_n = kl.effective_n(max(0.0, largest_kl))
    return best_of_n_curve(round(min(max(_LEAST_N, largest_n), _MOST_N)), pools)
