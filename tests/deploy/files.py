"""Readers of the files in ``deploy/``."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MONITORING = DEPLOY / "monitoring"
KUBERNETES = DEPLOY / "kubernetes"
SETTINGS = "cdserve.yaml"


def documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def document(path: Path) -> dict[str, Any]:
    """The only YAML document of a file."""
    (one,) = documents(path)
    return one


def dashboard() -> dict[str, Any]:
    """Grafana's dashboard."""
    board: dict[str, Any] = json.loads((MONITORING / "dashboards" / "cdserve.json").read_text())
    return board


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels without rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    return [
        rule for group in document(MONITORING / "alerts.yaml")["groups"] for rule in group["rules"]
    ]


def scalers() -> list[dict[str, Any]]:
    """KEDA's ScaledObjects."""
    values = document(KUBERNETES / "production-stack" / "values.yaml")
    return [
        document(KUBERNETES / "autoscaling" / "scaledobject.yaml"),
        *(one for one in values["extraObjects"] if one["kind"] == "ScaledObject"),
    ]


def expression(target: dict[str, Any]) -> str:
    """A panel's query as PromQL, with a value for Grafana's interval."""
    return str(target["expr"]).replace("$__rate_interval", "1m")


def queries() -> Iterator[tuple[str, str]]:
    """Every PromQL query with its location; Helm variables are replaced by values."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], expression(target)
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for scaler in scalers():
        (trigger,) = scaler["spec"]["triggers"]
        yield "ScaledObject", re.sub(r"\{\{.*?\}\}", "default", trigger["metadata"]["query"])


def metrics(query: str) -> set[str]:
    """The names of the metrics that a query reads."""
    return {one.name for one in _selectors(promql_parser.parse(query))}


def labels(query: str) -> dict[str, set[str]]:
    """The labels by which a query filters or groups each metric."""
    by_metric = {name: set[str]() for name in metrics(query)}
    for part in _parts(promql_parser.parse(query)):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            for one in _selectors(part):
                by_metric[one.name] |= set(part.modifier.labels)
        elif isinstance(part, promql_parser.VectorSelector):
            by_metric[part.name] |= {matcher.name for matcher in part.matchers.matchers}
    return by_metric


def _parts(query: promql_parser.Expr) -> list[promql_parser.Expr]:
    parts: list[promql_parser.Expr] = []
    promql_parser.walk(query, pre_visit=lambda part: parts.append(part))
    return parts


def _selectors(query: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    return [part for part in _parts(query) if isinstance(part, promql_parser.VectorSelector)]
