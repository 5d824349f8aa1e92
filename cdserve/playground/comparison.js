// Which of two texts is better, by how much, and at what cost.

import { duration, h, number } from "./dom.js";

/** The comparison of lanes A and B. */
export class Comparison {
  constructor() {
    this.headline = h("p", { class: "headline", role: "status" });
    this.rows = h("tbody");
    const names = ["", "A", "B", "A − B"].map((name) => h("th", { scope: "col" }, name));
    const table = h("table", {}, h("thead", {}, h("tr", {}, names)), this.rows);
    const label = { id: "comparison", "aria-label": "Comparison" };
    this.element = h("section", label, this.headline, table);
    this.clear();
  }

  /** Shows that runs are under way. */
  begin() {
    this.clear("Running …");
    this.element.dataset.state = "running";
  }

  /** Shows that a text is missing. */
  skip() {
    this.clear("No comparison: both runs must end with a text.");
  }

  /** Shows why the texts could not be scored. */
  fail(error) {
    this.clear(`The texts were not scored: ${error.message}`);
  }

  /**
   * Shows the scores of two texts.
   *
   * @param runs the runs of A and B.
   * @param scored scorings with `name`, `gold`, and `scores` of A and B; the last one decides.
   */
  show(runs, scored) {
    const rows = scored.flatMap(({ name, gold, scores }) => {
      const rewards = Object.keys(scores[0].rewards);
      const about = gold ? "held-out reward" : rewards.length > 1 ? "weighted sum" : rewards[0];
      const parts = rewards.length > 1 ? rewards : [];
      return [
        row(name, about, scores.map(({ score }) => score), number),
        ...parts.map((part) => row(part, "", scores.map((each) => each.rewards[part]), number)),
      ];
    });
    const drawn = runs.map(({ policy, report, tokens }) => {
      return policy.method === "none" ? tokens : (report?.candidate_tokens ?? null);
    });
    rows.push(
      row("tokens drawn", "", drawn, (count) => count?.toLocaleString("en") ?? "–"),
      row("first text", "", runs.map(({ first }) => first), duration),
      row("total time", "", runs.map(({ total }) => total), duration),
    );
    delete this.element.dataset.state;
    this.rows.replaceChildren(...rows);
    this.headline.textContent = scored.length > 0 ? verdict(scored.at(-1)) : "No common reward.";
  }

  clear(words = "Run both policies to see which text is better, and by how much.") {
    delete this.element.dataset.state;
    this.rows.replaceChildren();
    this.headline.textContent = words;
  }
}

function row(name, about, [a, b], shown) {
  const small = about && h("span", { class: "about" }, about);
  const difference = a === null || b === null ? "–" : signed(a - b, shown);
  const cells = [shown(a), shown(b), difference].map((text) => h("td", {}, text));
  return h("tr", {}, h("th", { scope: "row" }, name, " ", small), cells);
}

function verdict({ name, scores: [{ score: a }, { score: b }] }) {
  if (a === b) return `${name}: A and B are equal (${number(a)}).`;
  const values = `${number(Math.max(a, b))} against ${number(Math.min(a, b))}`;
  return `${name}: ${a > b ? "A" : "B"} is better by ${number(Math.abs(a - b))} (${values}).`;
}

function signed(difference, shown) {
  return `${difference < 0 ? "−" : "+"}${shown(Math.abs(difference))}`;
}
