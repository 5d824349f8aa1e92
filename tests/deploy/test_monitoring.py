"""The dashboard and the alert rules query existing metrics and labels."""

import itertools
import re
import subprocess
from typing import Any

import httpx2
import promql_parser
import pytest
from openai import OpenAI

from tests.server.wire import BEST_OF_N, BLOCKWISE, complete

from .files import (
    MONITORING,
    alerts,
    dashboard,
    document,
    expression,
    labels,
    metrics,
    panels,
    queries,
)
from .programs import program

QUERIES = list(queries())
OF_PROMETHEUS = {"up"}
"""Labels that Prometheus adds to every target."""
TARGET_LABELS = {"instance", "job", "namespace", "le"}
SERIES = {
    "counter": ("",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


def test_every_query_is_valid_promql() -> None:
    for where, query in QUERIES:
        try:
            promql_parser.parse(query)
        except ValueError as error:
            pytest.fail(f"{where}: {query}: {error}")


@pytest.fixture(scope="module")
def exposition(client: OpenAI, http: httpx2.Client) -> str:
    """/metrics after a search, a use of a reward model and a failed reward."""
    complete(client, {**BLOCKWISE, "k": 2, "rewards": {"sentiment": 1, "early": 1}}, max_tokens=8)
    complete(client, {**BEST_OF_N, "n": 2, "rewards": {"optional": 1, "brevity": 1}}, max_tokens=8)
    return http.get("/metrics").text


def test_every_queried_metric_exists(exposition: str) -> None:
    samples = set(re.findall(r"^([\w:]+)[{ ]", exposition, re.MULTILINE))
    served = set(OF_PROMETHEUS)
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", exposition, re.MULTILINE):
        series = {name + end for end in SERIES[kind]}
        # Without samples yet, what there will be; with samples, a histogram may lack its sum.
        served |= series & samples or series
    asked = {name: where for where, query in QUERIES for name in metrics(query)}
    missing = {name: where for name, where in asked.items() if name not in served}
    assert not missing
    assert "cdserve_waiting_candidates" in asked


def test_every_queried_label_exists_on_its_metric(exposition: str) -> None:
    samples = re.findall(r"^([\w:]+)\{(.*)\} \S+$", exposition, re.MULTILINE)
    served = {name: set(re.findall(r'(\w+)="', text)) for name, text in samples}
    read = [(name, of, where) for where, query in QUERIES for name, of in labels(query).items()]
    for name, of, where in read:
        if name in served:
            assert of <= served[name] | TARGET_LABELS, f"{where}: {name} has {served[name]}"
    checked = {name for name, _, _ in read if name in served}
    assert checked >= {
        "cdserve_responses_total",
        "cdserve_reward_failures_total",
        "cdserve_scorer_wait_seconds_bucket",
        "http_requests_total",
    }


def test_legends_use_labels_kept_by_the_query() -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = set[str]().union(*labels(expression(target)).values())
            assert named <= kept, panel["title"]


def test_panels_have_unique_ids_titles_and_the_data_source() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 39
    assert board["uid"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    variables = {one["name"] for one in board["templating"]["list"]}
    for panel in panels():
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        used = {name for t in panel["targets"] for name in re.findall(r"\$(\w+)", t["expr"])}
        assert used <= variables | {"__rate_interval"}


def test_panels_do_not_overlap() -> None:
    for one, other in itertools.combinations(dashboard()["panels"], 2):
        assert not _overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in dashboard()["panels"])


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def test_alert_annotations_use_labels_kept_by_the_rule() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        kept = set[str]().union(*labels(rule["expr"]).values()) | TARGET_LABELS
        assert named <= kept, rule["alert"]


def test_prometheus_operator_rules_match_the_alerts() -> None:
    rules = document(MONITORING / "prometheusrule.yaml")
    assert rules["spec"] == document(MONITORING / "alerts.yaml")


def test_promtool_alert_tests_pass() -> None:
    command = [program("promtool"), "test", "rules", "alerts.test.yaml"]
    subprocess.run(command, cwd=MONITORING, check=True)
