// The colour scale of values, and its legend.

import { h, number } from "./dom.js";

/** Where a value lies in a domain, 0 to 1; 1 if the domain is a point. */
export function fraction(value, [low, high]) {
  return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 1;
}

/** Units of a reward, by its settings in `GET /v1/alignment`; null if they say nothing. */
function unit({ kind, target, scale }) {
  const units = {
    value_head: "expected reward",
    length: `0 at ${target} tokens`,
    loglik: "nats",
    confidence: "nats",
    log_ratio: "log ratio × β",
    judge: `grade, ${scale?.join(" to ")}`,
    regex: "1 if it matches",
    json_valid: "1 if it is JSON",
    reward_model: "the model's output",
    http: "the model's output",
    python: "the function's value",
    ensemble: "of several rewards",
  };
  return units[kind] ?? null;
}

/** What a score is, in words: `name`, and `unit` or null. */
export function meaning(weights, rewards) {
  const names = Object.keys(weights);
  if (names.length === 1 && weights[names[0]] === 1) {
    return { name: names[0], unit: unit(rewards[names[0]] ?? {}) };
  }
  const terms = names.map((name) => `${weights[name]} ${name}`).join(" + ");
  return { name: terms.replaceAll("+ -", "− "), unit: "weighted sum" };
}

/** The legend of the colours in a text. */
export class Legend {
  constructor() {
    this.what = h("span", { class: "legend-what" });
    this.low = h("span");
    this.high = h("span");
    const ramp = h("span", { class: "ramp", "aria-hidden": "true" });
    const range = h("span", { class: "legend-range" }, this.low, ramp, this.high);
    this.element = h("p", { class: "legend", hidden: true }, this.what, range);
  }

  /**
   * @param about "Value after each block", for example.
   * @param domain least and greatest value.
   * @param meaning `name` and `unit` of the values.
   */
  show(about, [low, high], { name, unit }) {
    this.what.replaceChildren(`${about}: `, h("b", {}, name), unit ? ` (${unit})` : "");
    this.low.textContent = number(low);
    this.high.textContent = number(high);
    this.element.hidden = false;
  }

  hide() {
    this.element.hidden = true;
  }
}
