"""The playground in a real browser, against a real server."""

import builtins
import json
import math
import re
import shlex
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import httpx2
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.server.served import Served

from .browser import Playground
from .conftest import fresh
from .proxy import proxy

PROMPT = "Review: travel lawn mower (garden)."
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 8}
ROUTE = {"prompt": PROMPT, "route": "completions", "max_tokens": 48, "temperature": 1, "seed": 7}
LONG = {**ROUTE, "max_tokens": 400}
HELD = {"method": "blockwise_cd", "k": 8, "m": 1, "rewards": {"gate": 1.0}}
"""Goes no further than the gate lets it."""
GATED = {"method": "blockwise_cd", "k": 4, "m": 8, "rewards": {"gate": 1.0}}
WATCH = """
window.seen = [];
const text = document.querySelector("#lane-a .text");
new MutationObserver(() => {
  const { state } = text.parentElement.dataset;
  if (state === "running") seen.push({ at: performance.now(), text: text.textContent });
}).observe(text, { childList: true });
"""


def asked(http: httpx2.Client, policy: dict[str, Any], **fields: Any) -> Any:
    """The API's own answer to what the page asks with ``ROUTE``."""
    body = {name: value for name, value in ROUTE.items() if name != "route"}
    alignment = {**policy, "report": "trace"}
    answer = http.post("/v1/completions", json={**body, **fields, "alignment": alignment})
    answer.raise_for_status()
    return answer.json()


def value(shown: str) -> float:
    """A number as the page writes it."""
    return float(shown.replace("−", "-"))


def problem(page: Playground, field: str) -> str:
    """The words that stand next to a field, which must be marked as wrong for its user too."""
    assert "wrong" in (page.one(f"#{field}").get_attribute("class") or "")
    words = page.one(f"#{field} > .problem")
    assert words.is_displayed()
    (control, *_) = page.all(f"#{field} > :is(input, select, textarea)")
    assert control.get_attribute("aria-invalid") == "true"
    assert control.get_attribute("aria-describedby") == words.get_attribute("id")
    return words.text


class TestRun:
    def test_blocks_appear_one_after_another(self, page: Playground, http: httpx2.Client) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.js(WATCH)
        page.run()
        texts = list(dict.fromkeys(one["text"] for one in page.js("return seen") if one["text"]))
        expected = asked(http, BLOCKWISE)
        blocks = [chosen(decision)["text"] for decision in expected["alignment"]["trace"]]
        assert len(texts) == len(blocks) > 2
        assert texts == ["".join(blocks[: i + 1]) for i in range(len(blocks))]
        assert page.answer() == expected["choices"][0]["text"]
        assert "48 tokens, reached max_tokens" in page.text("#lane-a .progress")
        assert page.text("#lane-a .result > [role=status]") == page.text("#lane-a .progress")

    def test_decisions_open_while_more_are_made(self, page: Playground, server: Served) -> None:
        page.open(HELD, **LONG)
        with server.gate.closed(above=30):
            page.one("#run").click()
            first = page.until(lambda: page.all("#lane-a .decision"))[0]
            first.find_element("css selector", "summary").click()
            rows = page.until(lambda: page.all("#lane-a .candidates > li"))
            assert len(rows) == 8
            server.gate.until_wait(1)
            seen = len(page.all("#lane-a .decision"))
            server.gate.allow(90)
            page.until(lambda: len(page.all("#lane-a .decision")) > seen)
            page.wait("running")
            page.press(Keys.ESCAPE)
            page.wait("stopped")
        count = len(page.all("#lane-a .decision"))
        assert page.text("#lane-a .decisions h3") == f"{count} decisions"
        assert page.all("#lane-a .candidates > li") == rows
        assert page.js("return document.activeElement.parentElement") == first

    def test_ends_of_blocks_are_shown_and_edited_as_json(self, page: Playground) -> None:
        page.open({**BLOCKWISE, "k": 2, "m": 16, "until": ["."]}, **ROUTE)
        box = page.one("#a-until-input")
        assert box.get_property("value") == '["."]'
        page.run()
        page.one("#lane-a .decision > summary").click()
        page.until(lambda: 'block ends at "."' in page.text("#lane-a .candidates"))
        box.clear()
        box.send_keys(r'["\n\n", 5]')
        assert policy(page)["until"] == ["\n\n", 5]

    def test_value_after_each_token_is_shown(self, page: Playground) -> None:
        page.open({"method": "tokenwise_cd", "beta": 0.5}, **ROUTE)
        page.run()
        assert page.all("#lane-a svg.chart") == []
        page.one("#lane-a .charts button").click()
        # In one call: the page may draw the chart anew between two.
        label = """return document.querySelector("#lane-a svg.chart")?.ariaLabel"""
        found = re.match(r"Value after each of (\d+) tokens", page.until(lambda: page.js(label)))
        assert found
        assert int(found[1]) > 10

    def test_two_policies_run_side_by_side(self, page: Playground, http: httpx2.Client) -> None:
        other = {"method": "best_of_n", "n": 4}
        page.open(BLOCKWISE, other, **ROUTE)
        page.one("#run").click()
        page.wait("done", "a")
        page.wait("done", "b")
        for lane, policy in (("a", BLOCKWISE), ("b", other)):
            assert page.answer(lane) == asked(http, policy)["choices"][0]["text"]
        left, right = (page.one(f"#lane-{lane} .result").rect for lane in "ab")
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]

    def test_operator_only_preset_is_sent_by_name(self, page: Playground) -> None:
        page.open(**ROUTE)
        page.js(SELECT, page.one("#a-chooser"), "preset proxy")
        page.run()
        assert page.answer()
        assert "no trace" in page.text("#lane-a .made")

    def test_plain_decoding_shows_its_text_and_scores(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        page.open({"method": "none"}, **ROUTE)
        page.run()
        assert page.text("#lane-a .progress").startswith("Done in")
        assert not page.one("#comparison").is_displayed()
        page.until(lambda: "score" in figures(page))
        shown = figures(page)
        assert value(shown["score"]) == pytest.approx(score(http, page, "sentiment"), abs=1e-3)
        gold = score(http, page, "sentiment_gold")
        assert value(shown["sentiment_gold"]) == pytest.approx(gold, abs=1e-3)


class TestFirstRun:
    """The page without a link."""

    def test_page_opens_with_a_prompt_and_two_policies(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        page.open()
        examples = http.get("/playground/settings.json").json()["examples"]
        assert page.one("#prompt").get_property("value") == examples[0]
        assert [chip.text for chip in page.all("#examples button")] == examples
        assert policy(page)["method"] == "blockwise_cd"
        assert page.text("#lane-b .policy > summary") == "plain decoding"
        assert page.one("#lane-b").find_element("css selector", ".editor").is_displayed()

    def test_example_fills_the_prompt(self, page: Playground) -> None:
        page.open()
        example = page.all("#examples button")[1]
        example.click()
        assert page.one("#prompt").get_property("value") == example.text

    def test_comparison_scores_both_texts_by_the_same_rewards(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        policy = {**BLOCKWISE, "rewards": {"sentiment": 0.7, "brevity": 0.3}}
        page.open(policy, {"method": "none"}, **ROUTE)
        page.one("#run").click()
        rows = page.until(lambda: page.all("#comparison tbody tr"))
        cells = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]
        names = [row.find_element("css selector", "th").text.split()[0] for row in rows]
        shown = dict(zip(names, cells, strict=True))
        assert [*shown] == ["score", "sentiment", "brevity", "sentiment_gold", "tokens", *names[5:]]
        for name in ("sentiment", "brevity", "sentiment_gold"):
            scores = [score(http, page, name, lane) for lane in "ab"]
            expected = pytest.approx([*scores, scores[0] - scores[1]], abs=2e-3)
            assert [value(cell.replace("+", "")) for cell in shown[name]] == expected
        assert figures(page)["sentiment"] == shown["sentiment"][0]
        better = "A" if value(shown["sentiment_gold"][2].replace("+", "")) > 0 else "B"
        headline = page.text("#comparison .headline")
        assert headline.startswith(f"sentiment_gold: {better} is better by ")

    def test_reward_that_a_policy_weights_is_not_held_out(self, page: Playground) -> None:
        gold = {"method": "best_of_n", "n": 2, "rewards": {"sentiment_gold": 1}}
        page.open(gold, {"method": "none"}, **ROUTE)
        page.one("#run").click()
        page.until(lambda: page.all("#comparison tbody tr"))
        assert page.text("#comparison .headline").startswith("score: ")
        assert "held-out" not in page.text("#comparison")

    def test_stopped_run_is_not_compared(self, page: Playground, server: Served) -> None:
        page.open(HELD, {"method": "none"}, **ROUTE)
        with server.gate.closed(above=30):
            page.one("#run").click()
            page.wait("done", "b")
            page.press(Keys.ESCAPE)
            page.wait("stopped")
        page.until(lambda: "No comparison" in page.text("#comparison .headline"))

    def test_texts_that_cannot_be_scored_are_reported(self, page: Playground) -> None:
        page.open(BLOCKWISE, {"method": "none"}, **ROUTE)
        page.js("""
          const { fetch } = window;
          window.fetch = (url, ...rest) =>
            url.endsWith("/score") ? Promise.reject(new TypeError("away")) : fetch(url, ...rest);
        """)
        page.one("#run").click()
        page.until(lambda: "not scored" in page.text("#comparison .headline"))


class TestReport:
    """What is shown of one run, its report in the API's own words beside it."""

    POLICY: ClassVar[dict[str, Any]] = {
        **BLOCKWISE,
        "rewards": {"sentiment": 0.7, "brevity": 0.3},
        "selection": {"softmax": 0.5},
        "kl_budget": 4,
    }

    @pytest.fixture(scope="class")
    @classmethod
    def page(cls, browser: webdriver.Chrome, server: Served) -> Playground:
        page = fresh(browser, server)
        page.open(cls.POLICY, **ROUTE)
        page.run()
        return page

    @pytest.fixture(scope="class")
    @classmethod
    def report(cls, http: httpx2.Client) -> dict[str, Any]:
        found: dict[str, Any] = asked(http, cls.POLICY)["alignment"]
        return found

    def test_decisions_open_to_their_candidates(
        self, page: Playground, report: dict[str, Any]
    ) -> None:
        decisions = page.all("#lane-a .decision")
        assert len(decisions) == len(report["trace"]) > 2
        assert page.all("#lane-a .candidates > li") == []
        decisions[1].find_element("css selector", "summary").click()
        rows = page.until(lambda: page.all("#lane-a .candidates > li"))
        expected = sorted(report["trace"][1]["candidates"], key=lambda one: -one["score"])
        assert len(rows) == len(expected) == 4
        for row, candidate in zip(rows, expected, strict=True):
            score, *_ = row.find_element("css selector", ".score").text.split()
            assert value(score) == pytest.approx(candidate["score"], abs=1e-3)
            rewards = row.find_elements("css selector", "[data-reward]")
            shown = dict(reward.text.split() for reward in rewards)
            numbers = {name: value(number) for name, number in shown.items()}
            assert numbers == pytest.approx(candidate["rewards"], abs=1e-3)
            text = row.find_element("css selector", ".candidate-text")
            assert text.text.strip() == candidate["text"].strip()
            taken = row.find_elements("css selector", ".taken")
            assert bool(taken) == candidate["chosen"]

    def test_figures_of_a_report_are_shown(self, page: Playground, report: dict[str, Any]) -> None:
        names = [name.text for name in page.all("#lane-a .figures dt")]
        numbers = [number.text for number in page.all("#lane-a .figures b")]
        shown = dict(zip(names, numbers, strict=True))
        assert value(shown["score"]) == pytest.approx(report["score"], abs=1e-3)
        assert value(shown["brevity"]) == pytest.approx(report["rewards"]["brevity"], abs=1e-3)
        assert value(shown["KL bound"]) == pytest.approx(report["kl"]["bound"], abs=1e-3)
        assert int(shown["tokens drawn"].replace(",", "")) == report["candidate_tokens"]
        assert int(shown["candidates"]) == report["candidates"]
        assert re.fullmatch(r"[\d.]+ m?s", shown["first text"])
        meter = page.one("#lane-a meter")
        assert meter.get_property("max") == 4
        assert meter.get_property("value") == pytest.approx(report["kl"]["bound"])

    def test_value_is_drawn_along_the_text(self, page: Playground, report: dict[str, Any]) -> None:
        values, kl = page.all("#lane-a svg.chart")
        trace = report["trace"]
        scores = [chosen(decision)["score"] for decision in trace]
        dots = values.find_elements("css selector", "circle.taken")
        heights = [float(dot.get_attribute("cy") or "nan") for dot in dots]
        assert order(heights) == order([-score for score in scores])
        drawn = values.find_elements("css selector", "circle")
        assert len(drawn) == sum(len(decision["candidates"]) for decision in trace)
        spent = math.fsum(decision["kl"]["bound"] for decision in trace)
        assert f"{spent:.3f}" in (kl.get_attribute("aria-label") or "")
        values.find_elements("css selector", ".target")[2].click()
        assert page.all("#lane-a .decision")[2].get_property("open")


class TestRace:
    """The candidates of a block, side by side."""

    def test_candidates_are_shown_before_their_decision(
        self, page: Playground, server: Served, http: httpx2.Client
    ) -> None:
        page.open(GATED, **{**ROUTE, "max_tokens": 8})
        with server.gate.closed():
            page.one("#run").click()
            page.until(lambda: [c for c in cards(page) if c["note"] == "8 tokens"][3:])
            shown = cards(page)
            assert {card["state"] for card in shown} == {"running"}
            assert page.answer() == ""
            assert page.all("#lane-a .decision") == []
            assert page.text("#lane-a .race h3") == "Block 1"
            assert page.text("#lane-a .progress > span:nth-child(2)") == (
                "4 candidates under way, 8 tokens"
            )
            assert re.fullmatch(r"\d+\.\d s", page.text("#lane-a .clock"))
        page.wait("done")
        (decision,) = asked(http, GATED, max_tokens=8)["alignment"]["trace"]
        texts = [candidate["text"].removeprefix(" ") for candidate in decision["candidates"]]
        assert [card["text"] for card in shown] == texts

    def test_bars_grow_from_the_value_of_the_prefix_and_losers_are_marked(
        self, page: Playground
    ) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.js(SCRIPTED)
        page.one("#run").click()
        page.until(lambda: page.js("return Boolean(window.sent)"))
        assert page.js("return sent.alignment.report") == "live"
        send(page, drafts(("A", 0.25), ("The", None)))
        page.until(lambda: [card["score"] for card in cards(page)] == ["0.250", "–"])
        send(page, drafts(("A film", 0.75), ("The play", 0.5)))
        page.until(lambda: [card["bar"] for card in cards(page)] == [1, 0])
        assert page.answer() == ""
        send(page, decision(("A film", 0.75), ("The play", 0.5)), text="A film")
        page.until(lambda: [card["state"] for card in cards(page)] == ["taken", "lost"])
        assert page.answer() == "A film"
        send(page, drafts((" is", 0.8), (" was", 0.6)))
        page.until(lambda: [card["text"] for card in cards(page)] == ["is", "was"])
        starts = page.js(
            "return [...document.querySelectorAll('#lane-a .track')]"
            ".map((bar) => Number(bar.style.getPropertyValue('--from')))"
        )
        assert starts == [pytest.approx((0.75 - 0.5) / (0.8 - 0.5))] * 2
        page.press(Keys.ESCAPE)
        page.wait("stopped")

    def test_outcome_of_each_block_can_be_seen_again(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.run()
        trace = asked(http, BLOCKWISE)["alignment"]["trace"]
        count = len(trace)
        for number in (count, count - 1):
            assert page.text("#lane-a .race h3") == f"Block {number} of {count}"
            expected = [
                (
                    candidate["text"].removeprefix(" "),
                    "taken" if candidate["chosen"] else "lost",
                    pytest.approx(candidate["score"], abs=1e-3),
                )
                for candidate in trace[number - 1]["candidates"]
            ]
            shown = [(card["text"], card["state"], value(card["score"])) for card in cards(page)]
            assert shown == expected
            page.one("#lane-a .steps > button").click()
        page.all("#lane-a .block.decided")[0].click()
        assert page.text("#lane-a .race h3") == f"Block 1 of {count}"
        assert page.js("return document.querySelectorAll('#lane-a .current').length") == 1

    def test_legend_names_the_reward_its_units_and_its_range(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.run()
        trace = asked(http, BLOCKWISE)["alignment"]["trace"]
        scores = [candidate["score"] for each in trace for candidate in each["candidates"]]
        legend = page.one("#lane-a .legend").text
        assert "Value after each block: sentiment (expected reward)" in legend
        low, high = (
            page.text(f"#lane-a .legend-range > :{end}-child") for end in ("first", "last")
        )
        assert value(low) == pytest.approx(min(scores), abs=1e-3)
        assert value(high) == pytest.approx(max(scores), abs=1e-3)

    def test_legend_of_a_weighted_sum_names_its_terms(self, page: Playground) -> None:
        page.open({**BLOCKWISE, "rewards": {"sentiment": 0.7, "brevity": -0.3}}, **ROUTE)
        page.run()
        assert "0.7 sentiment − 0.3 brevity (weighted sum)" in page.text("#lane-a .legend")

    def test_tokens_are_coloured_by_their_values(self, page: Playground) -> None:
        page.open({"method": "tokenwise_cd", "beta": 0.5}, **ROUTE)
        page.run()
        assert not page.one("#lane-a .race").is_displayed()
        text = page.answer()
        page.one("#lane-a .charts button").click()
        page.until(lambda: page.all("#lane-a .block.valued"))
        assert page.answer() == text
        assert "Value after each token: sentiment" in page.text("#lane-a .legend")

    def test_text_is_announced_and_motion_is_not(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.run()
        assert page.one("#lane-a .text").get_attribute("aria-live") == "polite"
        for part in ("progress", "race", "clock"):
            live = f"document.querySelector('#lane-a .{part}').closest('[aria-live=polite]')"
            assert page.js(f"return {live}") is None


class TestCode:
    """The request as code."""

    def test_copied_code_reproduces_the_text(self, page: Playground, http: httpx2.Client) -> None:
        page.open(BLOCKWISE, **{**ROUTE, "prompt": 'Review: the author\'s "travel" kettle.'})
        page.run()
        page.js("document.querySelector('#lane-a .code').open = true")
        curl, python = (self.copied(page, i) for i in (1, 2))
        words = shlex.split(curl.replace("\\\n", ""))
        assert words[:2] == ["curl", f"{page.base_url}/v1/completions"]
        body = words[words.index("-d") + 1]
        headers = {"content-type": "application/json"}
        answer = http.post("/v1/completions", content=body, headers=headers).json()
        assert answer["choices"][0]["text"] == page.answer()
        calls: list[dict[str, Any]] = []
        exec(python, {"__builtins__": {**vars(builtins), "__import__": fake_openai(calls)}})
        (call,) = calls
        extra = call.pop("extra_body")
        assert {**call, **extra} == json.loads(body)

    def copied(self, page: Playground, i: int) -> str:
        """The code of the i-th button, shown once it is copied."""
        snippet = f"#lane-a .snippet:nth-of-type({i})"
        page.one(f"{snippet} > button").click()
        page.until(lambda: page.one(f"{snippet} > pre").is_displayed())
        return page.text(f"{snippet} > pre")


class TestLink:
    def test_link_reproduces_the_text(self, page: Playground) -> None:
        page.open(BLOCKWISE, **{**ROUTE, "seed": ""})
        page.run()
        text, url = page.answer(), page.browser.current_url
        assert page.one("#link").get_property("href") == url
        assert "seed=" in url
        page.type("#prompt", "Another prompt")
        page.go(url)
        page.until(lambda: page.one("#run").is_enabled())
        assert page.one("#prompt").get_property("value") == PROMPT
        page.run()
        assert page.answer() == text

    def test_link_holds_both_policies(self, page: Playground) -> None:
        page.open(BLOCKWISE, "proxy", **ROUTE)
        assert page.one("#compare").is_selected()
        assert page.text("#lane-a .policy > summary") == "blockwise_cd k=4 m=8"
        assert page.text("#lane-b .policy > summary") == "preset proxy"


class TestPolicy:
    def test_form_and_json_stay_in_step(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.type("#a-k-input", "8, 4, 2")
        page.js(SELECT, page.one("#a-selection-input"), "softmax")
        page.type("#a-selection-softmax-input", "0.25")
        page.js(SELECT, page.one("#a-rewards-input"), "brevity")
        page.type("#a-rewards-brevity-input", "-0.5")
        page.js(SELECT, page.one("#a-proposal-input"), "logit_mixing")
        page.js(SELECT, page.one("#a-proposal-recipe-input"), "proxy")
        page.js(SELECT, page.one("#a-proposal-recipe-tuned-input"), "tuned")
        assert policy(page) == {
            "method": "blockwise_cd",
            "k": [8, 4, 2],
            "m": 8,
            "selection": {"softmax": 0.25},
            "rewards": {"brevity": -0.5},
            "proposal": {
                "method": "logit_mixing",
                "recipe": {"kind": "proxy", "tuned": "tuned"},
            },
        }
        page.js(OPEN_JSON)
        page.type("#a-json", '{"method": "best_of_n", "n": 5}')
        assert page.one("#a-n-input").get_property("value") == "5"
        assert page.one("#a-chooser").get_property("value") == "method best_of_n"

    def test_judge_is_chosen_in_the_form_and_its_comparisons_are_shown(
        self, page: Playground
    ) -> None:
        page.open({"method": "best_of_n", "n": 4}, **{**ROUTE, "max_tokens": 8})
        page.js(SELECT, page.one("#a-selection-input"), "pairwise")
        page.js(SELECT, page.one("#a-selection-pairwise-judge-input"), "absent")
        selection = {"pairwise": {"judge": "absent"}}
        assert policy(page) == {"method": "best_of_n", "n": 4, "selection": selection}
        page.run()
        names = [name.text for name in page.all("#lane-a .figures dt")]
        assert {"compared by absent", "absent failed"} <= set(names)

    def test_every_method_has_a_form_that_can_be_sent(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        methods = http.get("/v1/alignment").json()["methods"]
        page.open(**{**ROUTE, "max_tokens": 4})
        for method in methods:
            page.js(SELECT, page.one("#a-chooser"), f"method {method}")
            page.run()
            assert policy(page)["method"] == method

    def test_answer_of_a_vote_is_offered_the_extractors_of_the_server(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        vote = {"vote": {"extract": "boxed"}}
        page.open({"method": "best_of_n", "n": 4, "selection": vote}, **ROUTE)
        read = '[...document.querySelectorAll("datalist option")]'
        offered = page.js(f"return {read}.map((option) => option.value)")
        assert offered == http.get("/v1/alignment").json()["extractors"]

    def test_invalid_json_is_reported(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.js(OPEN_JSON)
        page.type("#a-json", '{"method": "best_of_n", "n": }')
        assert "Invalid JSON" in problem(page, "a-json-field")
        before = page.requested()
        page.one("#run").click()
        assert page.requested() == before
        assert page.js("return document.activeElement.id") == "a-json"


REFUSED: list[tuple[Any, dict[str, Any], str, list[str]]] = [
    # policy, the request's other fields, the field that is at fault, what is said of it
    ({**BLOCKWISE, "k": 9}, {}, "a-k-field", ["9", "1 to 8"]),
    (
        {**BLOCKWISE, "proposal": {"method": "tokenwise_cd", "beta": 0}},
        *({}, "a-proposal-beta-field", ["0", "at least"]),
    ),
    (
        {**BLOCKWISE, "rewards": {"sentiment_gold": 1}},
        *({}, "a-rewards-sentiment_gold-field", ["finished"]),
    ),
    ({**BLOCKWISE, "kk": 1}, {}, "a-json-field", ["kk", "not known"]),
    ("unsafe", {}, "a-chooser-field", ["unsafe"]),
    (BLOCKWISE, {"max_tokens": 4000}, "max_tokens-field", ["4000"]),
    (BLOCKWISE, {"temperature": 0}, "temperature-field", ["0", "candidates"]),
    (BLOCKWISE, {"temperature": -1}, "temperature-field", ["-1"]),
]


class TestErrors:
    def test_error_stands_next_to_its_field(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        for policy, fields, field, words in REFUSED:
            page.browser.get(page.link(policy, **{**ROUTE, **fields}))  # in the page as it is
            page.run("failed")
            said = problem(page, field)
            assert all(word in said for word in words), said
            assert said == page.text("#lane-a .progress")

    def test_errors_go_with_the_next_run(self, page: Playground) -> None:
        page.open({**BLOCKWISE, "k": 9}, **ROUTE)
        page.run("failed")
        page.type("#a-k-input", "2")
        assert page.text("#a-k-field > .problem") == ""
        page.run()

    def test_failed_reward_in_a_stream_is_shown(self, page: Playground) -> None:
        page.open({"method": "best_of_n", "n": 2, "rewards": {"nan": 1}}, **ROUTE)
        page.run("failed")
        assert "nan" in page.text("#lane-a .progress")

    def test_empty_prompt_is_refused(self, page: Playground) -> None:
        page.open(BLOCKWISE, max_tokens=8)
        page.type("#prompt", "")
        page.one("#run").click()
        assert "prompt" in problem(page, "prompt-field")

    def test_unreachable_server_is_reported(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.offline(True)
        try:
            page.run("failed")
        finally:
            page.offline(False)
        assert "cannot be reached" in page.text("#lane-a .progress")


class TestKeyboard:
    def test_control_enter_runs_and_escape_stops(
        self, page: Playground, server: Served, http: httpx2.Client
    ) -> None:
        page.open(HELD, **LONG)
        before = cancelled(http)
        with server.gate.closed(above=30):
            page.one("#prompt").send_keys(Keys.CONTROL, Keys.ENTER)
            page.wait("running")
            page.until(lambda: page.answer())
            page.press(Keys.ESCAPE)
            page.wait("stopped")
            text = page.answer()
            page.until(lambda: cancelled(http) == before + 1, "its end at the server")
        server.wait_until_idle()
        assert page.answer() == text != ""
        assert "Stopped after" in page.text("#lane-a .progress")
        assert page.one("#run").is_enabled()

    def test_focus_moves_from_top_to_bottom(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        page.js("document.getElementById('prompt').focus()")
        visited = []
        for _ in range(16):
            visited.append(page.js("return document.activeElement.id"))
            page.press(Keys.TAB)
        named = [name for name in visited if name]
        expected = ["prompt", "max_tokens", "temperature", "seed", "route", "top_p", "compare"]
        assert named == [*expected, "run", "a-chooser", "a-k-input", "a-m-input", *named[11:]]

    def test_every_control_has_a_name(self, page: Playground) -> None:
        page.open({**BLOCKWISE, "rewards": {"sentiment": 1.0}}, "proxy", **ROUTE)
        nameless = page.js("""
          const named = (one) => one.labels?.length || one.ariaLabel || one.textContent.trim();
          return [...document.querySelectorAll("input, select, textarea, button")]
            .filter((one) => !named(one)).map((one) => one.outerHTML);
        """)
        assert nameless == []


class TestKey:
    def test_api_key_is_sent_through_a_proxy_with_another_root(
        self, page: Playground, browser: webdriver.Chrome, server: Served
    ) -> None:
        with proxy(server.base_url, "sk-1") as address:
            behind = Playground(browser, address)
            behind.go(behind.link(BLOCKWISE, **ROUTE))
            assert "API key" in behind.until(lambda: behind.text("#key-field > .problem"))
            assert not behind.one("#run").is_enabled()
            behind.type("#key", "sk-1" + Keys.TAB)
            behind.until(lambda: behind.one("#run").is_enabled())
            behind.run()
            kept = behind.js("return [Object.values(sessionStorage), Object.values(localStorage)]")
            assert kept == [["sk-1"], []]
            assert "sk-1" not in browser.current_url
            behind.type("#key", "sk-2" + Keys.TAB)
            assert "API key" in behind.until(lambda: behind.text("#trouble"))


class TestLooks:
    def test_phone_layout_has_one_column(self, page: Playground) -> None:
        page.resize(390, 844, mobile=True)
        proposal = {"method": "tokenwise_cd", "beta": 1}
        policy = {**BLOCKWISE, "rewards": {"sentiment": 1.0}, "proposal": proposal}
        page.open(policy, **ROUTE)
        page.run()
        page.one("#edit").click()
        page.js("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.js("return document.documentElement.scrollWidth") == 390
        parts = [page.one(part).rect for part in ("#request", "#lane-a .editor", "#lane-a .result")]
        assert len({part["x"] for part in parts}) == 1
        assert [part["y"] for part in parts] == sorted(part["y"] for part in parts)

    def test_form_folds_on_a_phone_after_run(self, page: Playground) -> None:
        page.resize(390, 844, mobile=True)
        page.open(BLOCKWISE, **ROUTE)
        assert not page.one("#folded").is_displayed()
        page.run()
        assert page.text("#folded-prompt") == PROMPT
        assert page.text("#folded-policy") == "blockwise_cd k=4 m=8"
        assert not page.one("#prompt").is_displayed()
        assert not page.one("#lane-a .editor").is_displayed()
        assert page.one("#lane-a .text").rect["y"] < 844 / 2
        assert page.js("return document.documentElement.scrollWidth") == 390
        page.one("#edit").click()
        assert page.one("#prompt").is_displayed()
        assert page.one("#lane-a .editor").is_displayed()
        page.type("#a-k-input", "9")
        page.run("failed")
        assert "1 to 8" in problem(page, "a-k-field")

    def test_reduced_motion_stops_all_animations(self, page: Playground, server: Served) -> None:
        page.open(GATED, **ROUTE)
        with server.gate.closed():
            for preference, moves in (("no-preference", True), ("reduce", False)):
                page.prefers(reduced_motion=preference)
                page.one("#run").click()
                page.until(lambda: page.all("#lane-a .card"))
                assert bool(page.js("return document.getAnimations().length")) is moves
                page.press(Keys.ESCAPE)
                page.wait("stopped")

    def test_dark_scheme_changes_the_colours(self, page: Playground) -> None:
        page.open(BLOCKWISE, **ROUTE)
        assert luminance(page, "body", "backgroundColor") > 0.8
        page.scheme("dark")
        assert luminance(page, "body", "backgroundColor") < 0.05
        page.js(SELECT, page.one("#theme"), "light")
        assert luminance(page, "body", "backgroundColor") > 0.8
        page.open(BLOCKWISE, **ROUTE)
        assert luminance(page, "body", "backgroundColor") > 0.8  # it is kept

    def test_text_has_enough_contrast(self, page: Playground) -> None:
        page.open({**BLOCKWISE, "k": 9}, **ROUTE)
        page.run("failed")
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            grounds = [luminance(page, one, "backgroundColor") for one in ("body", ".policy")]
            for selector in ("body", "label", ".note", ".problem", ".progress", "summary"):
                ink = luminance(page, selector, "color")
                for ground in grounds:
                    light, dark = max(ink, ground), min(ink, ground)
                    assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, selector)  # WCAG AA

    def test_page_loads_nothing_from_other_hosts(
        self, page: Playground, http: httpx2.Client
    ) -> None:
        page.browser.get_log("browser")
        page.open(BLOCKWISE, **ROUTE)
        page.run()
        page.all("#lane-a .decision summary")[0].click()
        urls = page.requested()
        assert f"{page.base_url}/v1/completions" in urls
        assert all(url.startswith(page.base_url) for url in urls), urls
        said = [one for one in page.browser.get_log("browser") if one["level"] == "SEVERE"]
        assert said == []


class TestFiles:
    def test_files_are_served_with_a_content_security_policy(self, http: httpx2.Client) -> None:
        for name, kind in (("", "text/html"), ("/main.js", "text/javascript")):
            answer = http.get(f"/playground{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["content-security-policy"].startswith("default-src 'self'")

    @pytest.mark.parametrize("name", ["none.js", "..%2fconfig.py", "%2e%2e%2fconfig.py"])
    def test_other_files_are_not_served(self, http: httpx2.Client, name: str) -> None:
        assert http.get(f"/playground/{name}").status_code == 404

    def test_unchanged_file_is_not_sent_again(self, http: httpx2.Client) -> None:
        etag = http.get("/playground/main.js").headers["etag"]
        again = http.get("/playground/main.js", headers={"if-none-match": etag})
        assert again.status_code == 304
        assert again.content == b""


SELECT = """
arguments[0].value = arguments[1];
arguments[0].dispatchEvent(new Event("change", { bubbles: true }));
"""
OPEN_JSON = "document.getElementById('a-json').closest('details').open = true"


SCRIPTED = """
const { fetch } = window;
window.fetch = (url, options) => {
  if (!url.endsWith("v1/completions")) return fetch(url, options);
  window.sent = JSON.parse(options.body);
  const body = new ReadableStream({
    start(stream) {
      const text = new TextEncoder();
      window.send = (chunk) => stream.enqueue(text.encode(`data: ${JSON.stringify(chunk)}\\n\\n`));
      options.signal.onabort = () => stream.error(new DOMException("stopped", "AbortError"));
    },
  });
  return Promise.resolve(new Response(body));
};
"""
"""Answers of completions that ``send`` writes, chunk by chunk."""


def send(page: Playground, fields: dict[str, Any], text: str | None = None) -> None:
    """Sends a chunk of the scripted answer."""
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": None}]
    page.js("send(arguments[0])", {"choices": choices, **fields})


def drafts(*candidates: tuple[str, float | None]) -> dict[str, Any]:
    """Fields of a chunk with candidates under way, each a text and a score."""
    drawn = [{"text": text, "tokens": 2, "score": score} for text, score in candidates]
    return {"alignment_candidates": [{"choice": 0, "draw": 0, "candidates": drawn}]}


def decision(*candidates: tuple[str, float]) -> dict[str, Any]:
    """Fields of a chunk with a decision for the first candidate."""
    rest = {"tokens": 2, "rewards": {}, "logprob": None, "finish_reason": None}
    listed = [
        {"text": text, "score": score, "chosen": i == 0, **rest}
        for i, (text, score) in enumerate(candidates)
    ]
    kl = {"bound": 0.2, "estimate": 0.2}
    return {"alignment_decisions": [{"kl": kl, "candidates": listed, "choice": 0}]}


def cards(page: Playground) -> list[dict[str, Any]]:
    """The cards of lane A's race."""
    found: list[dict[str, Any]] = page.js("""
      return [...document.querySelectorAll("#lane-a .card")].map((card) => ({
        state: card.dataset.state,
        score: card.querySelector(".score").textContent,
        note: card.querySelector(".facts").textContent,
        text: card.querySelector(".card-text").textContent,
        bar: Number(card.querySelector(".track").style.getPropertyValue("--value")),
      }));
    """)
    return found


def fake_openai(calls: list[dict[str, Any]]) -> Any:
    """An ``__import__`` whose OpenAI client records the arguments of completions."""
    answer = mock.MagicMock()
    client = mock.MagicMock()
    client.completions.create.side_effect = lambda **fields: calls.append(fields) or answer
    module = SimpleNamespace(OpenAI=lambda **_: client)
    return lambda *_: module


def chosen(decision: dict[str, Any]) -> dict[str, Any]:
    """The candidate that a traced decision took."""
    (found,) = (one for one in decision["candidates"] if one["chosen"])
    taken: dict[str, Any] = found
    return taken


def figures(page: Playground) -> dict[str, str]:
    """The figures of lane A by name."""
    script = """
      return [...document.querySelectorAll("#lane-a .figures > div")].map((figure) =>
        [figure.querySelector("dt").textContent, figure.querySelector("b").textContent]);
    """
    return dict(page.js(script))


def score(http: httpx2.Client, page: Playground, reward: str, lane: str = "a") -> float:
    """The API's score of a lane's text; the value before EOS if max_tokens cut the text."""
    body = {"responses": [page.answer(lane)], "rewards": {reward: 1}, "per_token": True}
    answer = http.post("/v1/alignment/score", json={"prompt": PROMPT, **body})
    answer.raise_for_status()
    (found,) = answer.json()["scores"]
    cut = "reached max_tokens" in page.text(f"#lane-{lane} .progress")
    values: list[float] = found["per_token"].get(reward, [found["score"]] * 2)
    return values[-2 if cut else -1]


def policy(page: Playground) -> Any:
    """The policy as the JSON editor has it."""
    return page.js("return JSON.parse(document.getElementById('a-json').value)")


def order(values: list[float]) -> list[int]:
    """Where each value stands among all."""
    return sorted(range(len(values)), key=values.__getitem__)


def cancelled(http: httpx2.Client) -> float:
    """Responses that were cancelled before their end, as the server counts them."""
    lines = http.get("/metrics").text.splitlines()
    found = (line for line in lines if line.startswith("cdserve_responses_total{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if 'outcome="cancelled"' in line)


def luminance(page: Playground, selector: str, colour: str) -> float:
    """Relative luminance of an element's colour, 0 to 1, as WCAG has it."""
    shown = page.js(
        """
        const context = document.createElement("canvas").getContext("2d");
        context.fillStyle = getComputedStyle(document.querySelector(arguments[0]))[arguments[1]];
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        """,
        selector,
        colour,
    )
    parts = [part / 255 for part in shown]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(part * by for part, by in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))
