// One policy: chosen by method or preset, edited as a form or as JSON, both in step.

import { copied, h } from "./dom.js";
import { complain, PolicyForm, problem } from "./form.js";
import { initial } from "./schema.js";
import { curl, python } from "./snippets.js";

const METHODS = {
  none: "Plain decoding",
  best_of_n: "Best of n answers",
  best_of_poisson: "Best of a random number of answers",
  blockwise_cd: "Best of k blocks",
  cards: "First block that is good enough",
  logit_mixing: "Mixture of models",
  rejection: "First answer that is accepted",
  speculative_rejection: "Best of n answers, weak ones dropped early",
  tokenwise_cd: "Every token steered",
};

/** The editor of the `alignment` field: an object with a method, or a preset's name. */
export class PolicyEditor {
  /**
   * @param prefix what the ids of its elements begin with.
   * @param server the answer of `GET /v1/alignment`.
   * @param onchange called after each change.
   * @param requested gives the request that runs this policy, as `snippets.js` takes it.
   */
  constructor(prefix, server, onchange, requested) {
    this.prefix = prefix;
    this.server = server;
    this.onchange = onchange;
    this.requested = requested;
    this.preset = null;
    const defaultReward = Object.keys(server.rewards).find((name) => server.rewards[name].default);
    const models = ["base", ...Object.keys(server.members)];
    const { rewards, extractors } = server;
    const judges = Object.keys(server.pairwise_judges);
    const names = { rewards, models, extractors, judges, defaultReward };
    this.form = new PolicyForm(prefix, names, () => this.changed());
    this.element = this.build();
    this.value = this.first();
  }

  get value() {
    return this.policy;
  }

  /** Takes a policy, shown in all of the editor. */
  set value(policy) {
    this.policy = policy;
    this.json.value = JSON.stringify(policy, null, 2);
    this.forgive();
    this.show();
  }

  /** What goes into the request: with a report that can be watched, unless the policy has one. */
  get sent() {
    const plain = typeof this.policy === "string" || this.policy.method === "none";
    return plain ? this.policy : { report: "live", ...this.policy };
  }

  /** A line that tells this policy from another. */
  get title() {
    if (typeof this.policy === "string") return `preset ${this.policy}`;
    const { method, ...rest } = this.policy;
    if (method === "none") return "plain decoding";
    const shown = Object.entries(rest).map(([key, value]) => `${key}=${compact(value)}`);
    return [method, ...shown].join(" ");
  }

  /** Whether there is a policy; if not, the words why stand under its JSON. */
  check() {
    if (this.parsed() !== undefined) return true;
    this.json.closest("details").open = true;
    this.json.focus();
    return false;
  }

  /** Puts an error's words next to the field it names: `alignment`, `alignment.k` and so on. */
  complain(param, message) {
    const [, ...path] = param.split(".");
    if (path[0] === "method" || path.length === 0) complain(this.chooserField, message);
    else if (!this.form.complain(path, message)) {
      complain(this.jsonField, message);
      this.json.closest("details").open = true;
    }
    const wrong = this.element.querySelector(".field.wrong");
    if (wrong?.closest(".more")) wrong.closest(".more").open = true;
    this.details.open = true;
  }

  /** Takes all words of errors away. */
  forgive() {
    for (const field of this.element.querySelectorAll(".field.wrong")) complain(field, null);
  }

  build() {
    const id = `${this.prefix}-chooser`;
    const { methods, presets } = this.server;
    this.chooser = h(
      "select",
      { id, onchange: () => this.choose(this.chooser.value) },
      h("optgroup", { label: "Methods" }, options("method", methods, METHODS)),
      h("optgroup", { label: "Presets" }, options("preset", presets)),
    );
    this.chooserField = h(
      "div",
      { class: "field", id: `${id}-field` },
      h("label", { for: id }, "Method"),
      this.chooser,
      problem(),
    );
    this.note = h("p", { class: "note" });
    this.help = h("p", { class: "note help", "aria-hidden": "true" });
    this.form.element.addEventListener("focusin", ({ target }) => {
      this.help.textContent = target.closest("[data-hint]")?.dataset.hint ?? "";
    });
    this.json = h("textarea", {
      id: `${this.prefix}-json`,
      rows: 8,
      spellcheck: "false",
      "aria-label": "policy as JSON",
      oninput: () => this.read(),
    });
    this.jsonField = h("div", { class: "field json", id: `${this.prefix}-json-field` }, [
      this.json,
      problem(),
    ]);
    const json = h("details", {}, h("summary", {}, "JSON"), this.jsonField);
    const code = h("details", { class: "code" }, h("summary", {}, "Code"), [
      this.snippet("curl", curl),
      this.snippet("Python", python),
    ]);
    this.heading = h("summary", {});
    this.details = h(
      "details",
      { class: "policy", open: true },
      this.heading,
      this.chooserField,
      this.note,
      this.form.element,
      this.help,
      json,
      code,
    );
    return this.details;
  }

  /** A button that copies the request as code, and shows it. */
  snippet(language, written) {
    const text = h("pre", { tabindex: 0, "aria-label": `${language} code`, hidden: true });
    const status = h("span", { role: "status" });
    const copy = async () => {
      text.textContent = written(this.requested());
      text.hidden = false;
      const done = await copied(text.textContent);
      status.textContent = done ? "copied" : "Select the code to copy it.";
    };
    const button = h("button", { type: "button", onclick: copy }, `Copy as ${language}`);
    return h("div", { class: "snippet" }, button, status, text);
  }

  first() {
    const presets = Object.entries(this.server.presets);
    const found = presets.find(([, { method }]) => method === "blockwise_cd") ?? presets[0];
    return found ? this.copy(found[0]) : this.begun("best_of_n");
  }

  choose(chosen) {
    const [kind, name] = [chosen.slice(0, 6), chosen.slice(7)];
    this.preset = kind === "preset" ? name : null;
    if (kind === "method") this.value = this.begun(name);
    else this.value = this.isOperators(name) ? name : this.copy(name);
    this.onchange();
  }

  /** A method's policy to begin with, within the server's limits. */
  begun(method) {
    const schema = this.server.methods[method];
    const policy = { method, ...initial(schema, schema) };
    const { max_n: maxN, max_k: maxK } = this.server.limits;
    const most = { n: maxN, k: maxK, max_draws: "k" in schema.properties ? maxK : maxN };
    for (const [key, bound] of Object.entries(most)) {
      if ((policy[key] ?? schema.properties[key]?.default) > bound) policy[key] = bound;
    }
    if (schema.properties.weights) policy.weights = { base: 1 };
    const [reward] = Object.keys(this.server.rewards);
    if (this.server.advice && reward && schema.properties.rewards) policy.rewards = { [reward]: 1 };
    return policy;
  }

  /** A preset as a policy of the client's, without what is the default anyway. */
  copy(name) {
    const { report, ...policy } = structuredClone(this.server.presets[name]);
    const { properties } = this.server.methods[policy.method];
    const said = ([key, value]) => properties[key]?.default !== value;
    return Object.fromEntries(Object.entries(policy).filter(said));
  }

  /** Whether only the operator may ask for it: weights whose sign requests may not give. */
  isOperators(name) {
    const { presets, rewards, limits } = this.server;
    const preset = presets[name];
    const refused = ([reward, weight]) => {
      const sign = rewards[reward]?.sign;
      return (sign === "positive" && weight < 0) || (sign === "negative" && weight > 0);
    };
    const weighted = [preset.rewards, preset.final_rewards, preset.proposal?.rewards];
    if (weighted.some((weights) => Object.entries(weights ?? {}).some(refused))) return true;
    if (limits.allow_negative_weights) return false;
    const text = JSON.stringify(preset);
    return /"kind":"proxy"|"weights":\{[^}]*:-/.test(text);
  }

  read() {
    const value = this.parsed();
    if (value === undefined) return;
    complain(this.jsonField, null);
    this.policy = value;
    this.show();
    this.onchange();
  }

  parsed() {
    let value;
    try {
      value = JSON.parse(this.json.value);
    } catch (error) {
      complain(this.jsonField, `Invalid JSON: ${error.message}`);
      return undefined;
    }
    if (typeof value === "string" || (typeof value === "object" && value && !Array.isArray(value))) {
      return value;
    }
    complain(this.jsonField, "A policy is an object with a method, or a preset's name.");
    return undefined;
  }

  changed() {
    this.json.value = JSON.stringify(this.policy, null, 2);
    complain(this.jsonField, null);
    this.heading.textContent = this.title;
    this.onchange();
  }

  show() {
    const named = typeof this.policy === "string";
    this.heading.textContent = this.title;
    this.chooser.value = named ? `preset ${this.policy}` : `method ${this.policy.method}`;
    this.note.replaceChildren(...this.notes(named));
    const schema = named ? {} : (this.server.methods[this.policy.method] ?? {});
    this.form.show(schema, named ? {} : this.policy);
    const empty = this.form.element.children.length === 0;
    this.form.element.hidden = this.help.hidden = empty;
  }

  notes(named) {
    if (named) {
      const copy = () => {
        this.value = this.copy(this.policy);
        this.onchange();
      };
      const known = this.policy in this.server.presets;
      return [
        "Sent by name, with the preset's own report setting. ",
        known ? h("button", { type: "button", class: "link", onclick: copy }, "Edit a copy") : "",
      ];
    }
    if (this.policy.method === "none") return ["The model's own text: no reward, one candidate."];
    if (this.preset === null) {
      const { methods, advice } = this.server;
      const about = described(methods[this.policy.method]);
      return [advice ? `${about} ${advice}` : about];
    }
    const name = () => {
      this.value = this.preset;
      this.onchange();
    };
    return [
      `Copy of the preset ${this.preset}, with its candidates in sight. `,
      h("button", { type: "button", class: "link", onclick: name }, "Send the preset's name"),
    ];
  }
}

function options(kind, names, words = {}) {
  return Object.keys(names).map((name) => {
    const label = words[name] ? `${words[name]} (${name})` : name;
    return h("option", { value: `${kind} ${name}` }, label);
  });
}

/** The first paragraph of a method's description, without its markup. */
function described(schema) {
  const [first] = (schema?.description ?? "").split("\n\n");
  return first.replaceAll("``", "").replaceAll("\n", " ");
}

function compact(value) {
  return typeof value === "string" ? value : JSON.stringify(value).replaceAll('"', "");
}
