// The decisions of a run: each opens to its candidates.

import { extent } from "./chart.js";
import { counted, duration, h, number } from "./dom.js";

/** A list that grows while its run goes on; what is open in it, or has the focus, stays so. */
export class DecisionList {
  /** @param prefix what the ids of its elements begin with. */
  constructor(prefix) {
    this.prefix = prefix;
    this.items = [];
    this.heading = h("h3");
    const attributes = { class: "decisions", "aria-label": "Decisions", hidden: true };
    this.element = h("section", attributes, this.heading);
  }

  /** Shows a run's decisions, of which the list has the first ones already. */
  show(decisions) {
    this.decisions = decisions;
    // The last one is said again: its block may have come since.
    for (let i = Math.max(0, this.items.length - 1); i < decisions.length; i += 1) {
      this.items[i] ??= this.add(decisions[i], i);
      this.items[i].replaceChildren(...said(decisions[i], i));
    }
    this.heading.textContent = counted(decisions.length, "decision");
    this.element.hidden = decisions.length === 0;
    this.scale();
  }

  /** Opens a decision and goes to it. */
  open(index) {
    const summary = this.items[index];
    summary.parentElement.open = true;
    summary.parentElement.scrollIntoView({ block: "nearest" });
    summary.focus({ preventScroll: true });
  }

  /** Adds a decision, closed; gives its summary. */
  add({ candidates }, i) {
    const summary = h("summary");
    const body = h("ol", { class: "candidates" });
    const fill = () => {
      if (body.children.length > 0) return;
      const ordered = [...candidates.entries()].sort(([, a], [, b]) => b.score - a.score);
      body.append(...ordered.map(([draw, candidate]) => row(candidate, draw)));
      this.scale();
    };
    const id = `${this.prefix}-decision-${i + 1}`;
    this.element.append(h("details", { class: "decision", id, ontoggle: fill }, summary, body));
    return summary;
  }

  /** Draws the bars of the candidates in sight on the scale of all. */
  scale() {
    const rows = this.element.querySelectorAll(".candidate");
    if (rows.length === 0) return;
    const [low, high] = extent(this.decisions);
    for (const { dataset, style } of rows) {
      style.setProperty("--value", high > low ? (dataset.score - low) / (high - low) : 1);
    }
  }
}

/** A decision in a line. */
function said({ candidates, chosen, kl, milliseconds }, i) {
  const facts = [
    candidates.length > 1 ? `selected from ${candidates.length}` : "single candidate",
    kl.bound > 0 ? `KL ≤ ${number(kl.bound)}` : null,
    milliseconds === null ? null : duration(milliseconds),
  ];
  return [
    h("span", { class: "index" }, `${i + 1}`),
    h("span", { class: "score" }, number(chosen.score)),
    h("span", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    h("span", { class: "excerpt" }, chosen.text.trim()),
  ];
}

/** A candidate: its score with a bar, its rewards, its text. */
function row(candidate, draw) {
  const { chosen, score, rewards, tokens, finish_reason: finish, logprob, text } = candidate;
  const { answer, until } = candidate;
  const each = Object.entries(rewards).map(([name, value]) => {
    return h("span", { class: "reward", "data-reward": name }, `${name} ${number(value)}`);
  });
  const facts = [
    counted(tokens, "token"),
    finish === null ? null : `ends: ${finish}`,
    until === undefined ? null : `block ends at ${JSON.stringify(until)}`,
    logprob === null ? null : `log p ${number(logprob)}`,
    answer === undefined ? null : answer === null ? "no answer" : `answer: ${answer}`,
    `draw ${draw + 1}`,
  ];
  return h(
    "li",
    { class: chosen ? "candidate chosen" : "candidate", "data-score": score },
    h("span", { class: "score" }, number(score), h("span", { class: "bar", "aria-hidden": "true" })),
    h(
      "div",
      { class: "what" },
      h("p", { class: "candidate-text" }, text === "" ? "(no text)" : text.replace(/^ /, "")),
      h(
        "p",
        { class: "facts" },
        chosen && h("strong", { class: "taken" }, "taken"),
        each,
        facts.filter(Boolean).map((fact) => h("span", {}, fact)),
      ),
    ),
  );
}
