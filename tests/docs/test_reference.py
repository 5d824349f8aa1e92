"""The reference matches the code, and reports match the reference."""

import re
from typing import Any

import pytest
from openai import OpenAI
from pydantic import TypeAdapter

from cdserve.report import Report
from docs.reference import page
from tests.server.wire import complete

from .blocks import ROOT

ROW = re.compile(r"^\| `(\w+)` .* \| (.*) \|$", re.MULTILINE)
TRACED: list[dict[str, Any]] = [
    {"method": "best_of_n", "n": 2, "kl_budget": 1},
    {"method": "best_of_poisson", "mu": 1},
    {"method": "rejection", "eta": 1, "r_max": 8, "max_draws": 2},
    {"method": "blockwise_cd", "k": 2, "m": 16, "deadline_ms": 60_000},
    {"method": "speculative_rejection", "n": 2, "m": 16},
    {"method": "cards", "m": 16, "r_star": 1, "max_draws": 2, "k": 2},
    {"method": "tokenwise_cd", "beta": 1},
    {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}},
    {"method": "best_of_n", "n": 2, "rewards": {"sentiment": 1, "optional": 1}},
]


def test_reference_page_equals_the_generated_page() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m docs.reference > docs/reference.md"


def test_every_field_of_the_reference_has_a_description() -> None:
    described_by_their_section = {"method", "kind"}
    undescribed = {field for field, meaning in ROW.findall(page()) if not meaning}
    assert undescribed <= described_by_their_section


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("policy", TRACED, ids=lambda policy: "-".join(map(str, policy)))
def test_traced_reports_match_the_report_schema_exactly(
    client: OpenAI, policy: dict[str, Any], n: int
) -> None:
    answer = complete(client, {**policy, "report": "trace"}, n=n, max_tokens=32)
    TypeAdapter(Report).validate_python(answer.alignment, strict=True)
