// A form over one policy, made of its method's JSON schema.

import { h } from "./dom.js";
import { branches, branchOf, initial, nameOf, range } from "./schema.js";

const OF_THE_PAGE = ["method", "report"]; // the page chooses the one and needs the other as it is
const IN_SIGHT = ["rewards", "weights"]; // optional fields that are not folded
const WORDS = {
  continuation_gain: "Gain of later decisions",
  "cards.alpha": "First threshold",
  "recipe.alpha": "Strength of the shift",
  at_once: "Drawn at once",
  "speculative_rejection.alpha": "Share dropped",
  beam_width: "Beams",
  beta: "Reward units per nat",
  "tokenwise_cd.beta": "Strength of the base model",
  deadline_ms: "Deadline in ms",
  delta: "Probability given up",
  eta: "Reward units per nat",
  every: "Tokens between comparisons",
  gain_per_token: "Gain per token",
  gate: "Few candidates if good enough",
  judge: "Judge",
  k: "Candidates per block",
  "cards.k": "Blocks drawn at a time",
  kind: "Kind",
  kl_budget: "KL budget in nats",
  lambda: "Strength λ",
  m: "Tokens per block",
  "speculative_rejection.m": "Tokens between comparisons",
  max_draws: "Maximum draws",
  mu: "Mean draws less one",
  n: "Answers drawn",
  on_reject: "Otherwise",
  pairwise: "Comparisons",
  pessimistic: "Level β",
  proposal: "Proposal",
  r_max: "Upper bound of reward",
  race: "Give up weak answers",
  r_star: "Target value",
  ratio: "Ratio of KL penalties",
  reference: "Reference model",
  recipe: "Recipe",
  rewards: "Rewards",
  rise: "Blocks to target",
  sampling: "Sampling for temperature 0",
  "sampling.min_p": "Least probability, relative",
  "sampling.temperature": "Temperature",
  "sampling.top_k": "Most likely tokens",
  "sampling.top_p": "Nucleus",
  certain: "Probability of the lead",
  extract: "Answer of a response",
  final_rewards: "Rewards of ended answers",
  lookahead: "Tokens of look-ahead",
  mbr: "Agreement",
  "mbr.beta": "Weight of agreement",
  "mbr.similarity": "Agreement by",
  score: "Lowest score",
  scouts: "Candidates first",
  selection: "Selection",
  softmax: "Temperature λ",
  stop: "Stop early",
  subtrees: "Separate searches",
  threshold: "Good enough",
  "best_of_n.threshold": "Lowest accepted score",
  top_k: "Tokens steered",
  tournament: "Tournament",
  tuned: "Tuned model",
  until: "Blocks end at",
  vote: "Vote",
  "vote.weights": "Weight of a vote",
  weights: "Model weights",
};
const ABSENT = {
  at_once: "all",
  deadline_ms: "none",
  final_rewards: "as rewards",
  kl_budget: "none",
  lookahead: "none",
  proposal: "base model",
  sampling: "none",
  top_k: "all",
};
const CHOICES = {
  argmax: "highest score",
  count: "one each",
  logit_mixing: "mixture of models",
  mbr: "most like the others",
  mixture: "several goals",
  pairwise: "preferred by a judge",
  pessimistic: "pessimistic, at random",
  posterior: "probability of being right",
  proxy: "shift of a smaller pair",
  rescale: "other KL penalty",
  reward: "score, at least 0",
  softmax: "at random, the better the likelier",
  tokenwise_cd: "every token steered",
  vote: "most frequent answer",
  worst_case: "best in its worst reward",
};
const EXAMPLES = { until: '["\\n\\n"]' };
const SLIDERS = {
  any: { min: -2, max: 2 },
  positive: { min: 0, max: 2 },
  negative: { min: -2, max: 0 },
};

/**
 * The form. It changes the policy in place, key by key, so that what it does not know is kept.
 *
 * @param prefix what the ids of its elements begin with.
 * @param names names that may stand in it: `rewards` with what each can score, `models`, `judges`.
 * @param onchange called after each change.
 */
export class PolicyForm {
  constructor(prefix, names, onchange) {
    this.prefix = prefix;
    this.names = names;
    this.onchange = onchange;
    this.element = h("div", { class: "policy-form" });
  }

  /** Shows a policy; the element that had the focus has it again. */
  show(schema, policy) {
    this.schema = schema;
    this.policy = policy;
    const focused = document.activeElement?.id;
    const fields = this.fields(schema, [], OF_THE_PAGE);
    const { required = [] } = schema;
    const folded = ({ key }) => !required.includes(key) && !IN_SIGHT.includes(key);
    const set = fields.some((field) => folded(field) && policy[field.key] !== undefined);
    const more = h("details", { class: "more", open: this.opened || set }, [
      h("summary", {}, "More"),
      h("div", { class: "policy-form" }, fields.filter(folded).map(({ element }) => element)),
    ]);
    more.addEventListener("toggle", () => (this.opened = more.open));
    this.element.replaceChildren(
      ...fields.filter((field) => !folded(field)).map(({ element }) => element),
      ...(fields.some(folded) ? [more] : []),
    );
    if (focused?.startsWith(`${this.prefix}-`)) document.getElementById(focused)?.focus();
  }

  /** Puts words next to the field at `path`, or the nearest one around it; false if none is. */
  complain(path, message) {
    for (let length = path.length; length > 0; length--) {
      const field = document.getElementById(this.id(path.slice(0, length), "field"));
      if (!field) continue;
      complain(field, message);
      return true;
    }
    return false;
  }

  fields(schema, path, hidden = []) {
    const required = schema.required ?? [];
    const entries = Object.entries(schema.properties ?? {}).filter(
      ([key, property]) => !hidden.includes(key) && property.const === undefined,
    );
    const rank = ([key]) => (required.includes(key) ? 0 : 1);
    return entries
      .sort((a, b) => rank(a) - rank(b))
      .map(([key, property]) => {
        const element = this.field(property, [...path, key], required.includes(key));
        return { key, element };
      });
  }

  field(property, path, required) {
    const options = branches(property, this.schema);
    const key = path.at(-1);
    const about = { property, path, required, id: this.id(path, "input") };
    const plain = WORDS[`${path.at(-2) ?? this.policy.method}.${key}`] ?? WORDS[key];
    const words = plain ? [plain, " ", h("code", {}, key)] : key;
    const label = required ? words : [words, h("span", { class: "optional" }, " optional")];
    const hint = [property.description, range(options[0])].filter(Boolean).join(" ");
    return h(
      "div",
      { class: "field", id: this.id(path, "field"), "data-hint": hint },
      h("label", { for: about.id, title: hint }, label),
      this.control(options, about),
      problem(),
    );
  }

  control(options, about) {
    const [first] = options;
    if (options.length === 2 && first.type === "integer" && options[1].type === "array") {
      return [this.input(about, { inputmode: "numeric", placeholder: "4, or 8, 4, 2" }, counts)];
    }
    if (options.length > 1) return this.union(options, about);
    if (first.enum) return [this.select(first.enum, about)];
    if (first.type === "object" && first.additionalProperties) return [this.weights(about)];
    if (first.type === "object" && about.required) return this.nested(first, about.path);
    if (first.type === "object") return this.union(options, about);
    if (first.type === "boolean") return [this.select([true, false], about)];
    if (first.type === "string") return [this.text(about)];
    if (["number", "integer"].includes(first.type)) {
      return [this.input(about, { inputmode: "decimal" }, numeric)];
    }
    return [this.input(about, { placeholder: EXAMPLES[about.path.at(-1)] ?? "JSON" }, json)];
  }

  input({ id, path, property }, attributes, parse) {
    const value = this.get(path);
    const fallback = property.default ?? attributes.placeholder ?? ABSENT[path.at(-1)] ?? "";
    const listen = ({ target }) => {
      const given = target.value.trim();
      this.set(path, given === "" ? undefined : parse(given));
    };
    const written = parse === json ? JSON.stringify(value) : text(value);
    const shown = parse === counts && Array.isArray(value) ? value.join(", ") : text(written);
    const fixed = { ...attributes, placeholder: fallback };
    return h("input", { id, type: "text", value: shown, oninput: listen, ...fixed });
  }

  text(about) {
    const key = about.path.at(-1);
    if (["tuned", "reference", "member"].includes(key)) return this.select(this.names.models, about);
    if (key === "judge") return this.select(this.names.judges, about);
    if (key === "extract") {
      const list = `${about.id}-names`;
      const known = this.names.extractors.map((value) => h("option", { value }));
      return [this.input(about, { list }, (value) => value), h("datalist", { id: list }, known)];
    }
    return this.input(about, {}, (value) => value);
  }

  select(values, { id, path, required, property }) {
    const value = this.get(path);
    const fallback = text(property.default);
    const absent = required ? "choose …" : fallback ? `${fallback} (default)` : "–";
    const known = values.map(text).filter((name) => required || name !== fallback);
    if (value !== undefined && !known.includes(text(value))) known.push(text(value));
    const listen = (event) =>
      this.set(path, values.find((one) => text(one) === event.target.value));
    return h(
      "select",
      { id, onchange: listen },
      h("option", { value: "" }, absent),
      known.map((name) => h("option", { value: name, selected: name === text(value) }, name)),
    );
  }

  union(options, { id, path, property, required }) {
    const value = this.get(path);
    const branch = value === undefined ? undefined : branchOf(options, value);
    const fallback = property.default ?? null;
    const listen = (event) => {
      const chosen = options.find((one) => nameOf(one) === event.target.value);
      this.set(path, chosen && (initial(chosen, this.schema) ?? ""));
      this.show(this.schema, this.policy);
    };
    const usual = CHOICES[fallback] ? `${CHOICES[fallback]} (${fallback})` : `${fallback} (default)`;
    const none = ABSENT[path.at(-1)] ?? "–";
    const absent = required ? "choose …" : fallback === null ? none : usual;
    const named = options.map(nameOf).filter((name) => name !== fallback || value === fallback);
    const select = h(
      "select",
      { id, onchange: listen },
      h("option", { value: "" }, absent),
      named.map((name) => {
        const plain = CHOICES[name] ? `${CHOICES[name]} (${name})` : name;
        const label = options.length === 1 ? "on" : plain;
        return h("option", { value: name, selected: branch && nameOf(branch) === name }, label);
      }),
    );
    return [select, ...(branch ? this.nested(branch, path) : [])];
  }

  nested(branch, path) {
    const inside = this.fields(branch, path).map(({ element }) => element);
    return inside.length > 0 ? [h("div", { class: "nested" }, inside)] : [];
  }

  weights({ id, path, property, required }) {
    const models = path.at(-1) === "weights";
    const known = models ? this.names.models : Object.keys(this.names.rewards);
    const value = this.get(path) ?? {};
    const unused = known.filter((name) => !(name in value));
    const add = (event) => {
      const added = [...path, event.target.value];
      const cost = !models && this.names.rewards[event.target.value].sign === "negative";
      this.set(added, cost ? -1 : 1);
      this.show(this.schema, this.policy);
      this.focus(added);
    };
    const usual = ABSENT[path.at(-1)] ?? `${this.names.defaultReward ?? "none"} (default)`;
    const rest = models || required ? "none" : usual;
    const adder = h(
      "select",
      { id, onchange: add, title: property.description ?? null },
      h("option", { value: "" }, Object.keys(value).length > 0 ? "add …" : rest),
      unused.map((name) => h("option", { value: name }, name, this.about(models, name))),
    );
    return h(
      "div",
      { class: "weights" },
      Object.keys(value).map((name) => this.weight([...path, name])),
      adder,
    );
  }

  weight(path) {
    const name = path.at(-1);
    const id = this.id(path, "input");
    const label = `weight of ${name}`;
    const value = text(this.get(path));
    const slider = h("input", {
      ...SLIDERS[this.names.rewards[name]?.sign ?? "any"],
      step: 0.05,
      type: "range",
      value,
      "aria-label": `${label}, slider`,
      oninput: () => {
        box.value = slider.value;
        this.set(path, Number(slider.value));
      },
    });
    const listen = ({ target }) => {
      slider.value = target.value;
      this.set(path, numeric(target.value.trim()));
    };
    const box = h("input", { id, type: "text", inputmode: "decimal", value, oninput: listen });
    const remove = () => {
      this.set(path, undefined);
      if (Object.keys(this.get(path.slice(0, -1))).length === 0) {
        this.set(path.slice(0, -1), undefined);
      }
      this.show(this.schema, this.policy);
      this.focus(path.slice(0, -1));
    };
    box.setAttribute("aria-label", label);
    return h(
      "div",
      { class: "field weight", id: this.id(path, "field") },
      h("span", { class: "name", title: name }, name),
      slider,
      box,
      h("button", { type: "button", "aria-label": `remove ${name}`, onclick: remove }, "×"),
      problem(),
    );
  }

  about(models, name) {
    if (models) return "";
    const { prefixes, next_tokens: tokens } = this.names.rewards[name];
    return tokens ? "" : prefixes ? " · no values of tokens" : " · finished texts only";
  }

  focus(path) {
    document.getElementById(this.id(path, "input"))?.focus();
  }

  get(path) {
    return path.reduce((holder, key) => holder?.[key], this.policy);
  }

  set(path, value) {
    const holder = path.slice(0, -1).reduce((found, key) => (found[key] ??= {}), this.policy);
    if (value === undefined) delete holder[path.at(-1)];
    else holder[path.at(-1)] = value;
    for (let length = path.length; length > 0; length--) {
      const field = document.getElementById(this.id(path.slice(0, length), "field"));
      if (field) complain(field, null);
    }
    this.onchange();
  }

  id(path, part) {
    return [this.prefix, ...path, part].join("-");
  }
}

/** Where words about a field's value stand. */
export function problem() {
  return h("p", { class: "problem", role: "alert" });
}

/** Marks a field as wrong and says why; with no message, as right. */
export function complain(field, message) {
  field.classList.toggle("wrong", Boolean(message));
  const words = field.querySelector(":scope > .problem");
  words.textContent = message ?? "";
  words.id ||= `${field.id}-problem`;
  for (const input of field.querySelectorAll("input, select, textarea")) {
    if (input.closest(".field") !== field) continue;
    if (message) {
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", words.id);
    } else {
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-describedby");
    }
  }
}

// What a field's text stands for. What it cannot stand for is kept as it is: the server says so.

function numeric(given) {
  return given !== "" && Number.isFinite(Number(given)) ? Number(given) : given;
}

function json(given) {
  try {
    return JSON.parse(given);
  } catch {
    return given;
  }
}

function counts(given) {
  const parts = given.replace(/^\[|\]$/g, "").split(",");
  const values = parts.map((part) => numeric(part.trim()));
  return given.includes(",") || given.startsWith("[") ? values : values[0];
}

function text(value) {
  return value === undefined || value === null ? "" : String(value);
}
