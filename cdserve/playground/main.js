// The page: a request, one or two policies, and what comes of them.

import { ApiError, discover, score } from "./api.js";
import { extent } from "./chart.js";
import { Comparison } from "./comparison.js";
import { copied, h } from "./dom.js";
import { complain } from "./form.js";
import { fragment, read } from "./link.js";
import { PolicyEditor } from "./policy.js";
import * as request from "./request.js";
import { Run } from "./run.js";
import { meaning } from "./scale.js";
import { ResultView } from "./view.js";

const KEY = "cdserve-api-key";
const PLAIN = { method: "none" };
const PHONE = matchMedia("(max-width: 700px)");
const NEUTRAL_PROMPT = "Write a short story about a lighthouse keeper.";
const by = (id) => document.getElementById(id);

/** A policy and its result. */
class Lane {
  constructor(name, server, values, code) {
    this.name = name;
    const prefix = name.toLowerCase();
    this.editor = new PolicyEditor(prefix, server, () => {}, () => code(this));
    this.view = new ResultView(prefix, name, values);
    const heading = h("h2", { class: "lane-name" }, `Policy ${name}`);
    const label = { class: "editor", "aria-label": `Policy ${name}` };
    const policy = h("section", label, heading, this.editor.element);
    this.element = h("div", { class: "lane", id: `lane-${prefix}` }, policy, this.view.element);
  }
}

class Page {
  constructor() {
    this.lanes = [];
    this.running = null;
    by("key").value = sessionStorage.getItem(KEY) ?? "";
    by("key").addEventListener("change", () => this.rekey());
    by("request").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    by("stop").addEventListener("click", () => this.stop());
    by("compare").addEventListener("change", () => this.arrange());
    by("copy").addEventListener("click", () => this.copyLink());
    by("edit").addEventListener("click", () => this.unfold());
    addEventListener("keydown", (event) => this.keydown(event));
    addEventListener("hashchange", () => this.load(read(location.hash)));
  }

  get key() {
    return by("key").value.trim();
  }

  /** The lanes that are shown. */
  get active() {
    return by("compare").checked ? this.lanes : this.lanes.slice(0, 1);
  }

  /** Asks the server what it can do with this key, and makes the rest of the page of that. */
  async start() {
    by("trouble").hidden = true;
    by("run").disabled = true;
    try {
      this.server = await discover(this.key);
    } catch (error) {
      this.trouble(error);
      return;
    }
    by("model").textContent = this.server.model;
    const values = {
      known: (run) => this.valued(run) !== null,
      of: (run) => this.valuesOf(run),
      meaning: (run, reward) => this.meaning(run, reward),
    };
    const code = (lane) => this.coded(lane);
    const edited = this.lanes.map(({ editor }) => editor.value);
    this.lanes.forEach(({ element }) => element.remove());
    this.lanes = ["A", "B"].map((name) => new Lane(name, this.server, values, code));
    this.lanes[1].editor.value = PLAIN;
    this.comparison?.element.remove();
    this.comparison = new Comparison();
    by("main").append(this.comparison.element, ...this.lanes.map(({ element }) => element));
    by("run").disabled = false;
    this.offer(this.server.examples);
    if (edited.length === 0) this.load(read(location.hash));
    else edited.forEach((policy, i) => (this.lanes[i].editor.value = policy));
    this.arrange();
  }

  /** Offers example prompts; the first fills an empty field. */
  offer(examples) {
    const chip = (prompt) => {
      const onclick = () => {
        by("prompt").value = prompt;
        by("prompt").focus();
      };
      return h("button", { type: "button", class: "chip", title: prompt, onclick }, prompt);
    };
    by("examples").replaceChildren(...examples.map(chip));
    by("examples").hidden = examples.length === 0;
    if (by("prompt").value === "") by("prompt").value = examples[0] ?? NEUTRAL_PROMPT;
  }

  /** Fills the page with the run of a link. */
  load({ settings, policies }) {
    if (this.lanes.length === 0) return;
    this.unfold();
    request.forgive();
    request.fill(settings);
    policies.forEach((policy, i) => (this.lanes[i].editor.value = policy));
    const linked = policies.length > 0 || Object.keys(settings).length > 0;
    by("compare").checked = policies.length > 1 || !linked;
    this.arrange();
  }

  arrange() {
    by("main").dataset.lanes = this.active.length;
    this.lanes.forEach((lane) => (lane.element.hidden = !this.active.includes(lane)));
    if (this.comparison) this.comparison.element.hidden = this.active.length < 2;
  }

  async run() {
    if (this.lanes.length === 0 || this.running) return;
    const { active } = this;
    active.forEach(({ editor }) => editor.forgive());
    if (!request.check() || !active.every(({ editor }) => editor.check())) return;
    const { key } = this;
    const settings = request.settings();
    const seed = settings.seed === undefined ? drawn() : Number(settings.seed);
    const policies = active.map(({ editor }) => editor.value);
    this.showLink(fragment({ settings: { ...settings, seed }, policies }));
    this.running = new AbortController();
    if (active.length > 1) this.comparison.begin();
    else this.comparison.clear();
    this.enable();
    if (PHONE.matches) this.fold(settings.prompt);
    else reveal(active.length > 1 ? this.comparison.element : active[0].view.element);
    const body = request.body(settings, seed);
    await Promise.all(active.map((lane) => this.answer(lane, settings, body)));
    this.running = null;
    this.enable();
    share(active);
    await this.judge(active, key);
  }

  /** Scores the runs' texts by the same rewards, and compares them if there are two. */
  async judge(active, key) {
    const runs = active.map(({ view }) => view.run);
    if (!runs.every(({ state, text }) => state === "done" && text !== "")) {
      this.comparison.skip();
      return;
    }
    const scored = await Promise.all(this.scorings(runs).map(async ({ rewards, ...scoring }) => {
      const scores = runs.map((run) => this.scored(run, rewards, key));
      return { ...scoring, scores: await Promise.all(scores) };
    })).catch((error) => error);
    if (active.some(({ view }, i) => view.run !== runs[i])) return; // a later run has begun
    if (scored instanceof Error) return this.comparison.fail(scored);
    active.forEach(({ view }, i) => view.judge(scored.map((s) => ({ ...s, ...s.scores[i] }))));
    if (runs.length > 1) this.comparison.show(runs, scored);
  }

  /** Scores of a run's text; of a text that max_tokens cut, the values do not include EOS. */
  async scored(run, rewards, key) {
    const body = scoringBody(this.server, run, rewards);
    const found = await score({ ...body, per_token: run.finish === "length" }, { key });
    for (const [name, values] of Object.entries(found.per_token ?? {})) {
      const { standardise } = this.server.rewards[name];
      if (standardise === true) continue; // by the head's statistics, which are not public
      const value = values.at(-2) ?? values.at(-1);
      const weight = rewards[name] / (standardise?.std ?? 1);
      found.score += weight * (value - found.rewards[name]);
      found.rewards[name] = value;
    }
    return found;
  }

  /**
   * Scorings of texts, each with `rewards`, the weights to request: by the rewards of each
   * policy, if a text has no report or texts are compared, and by a gold reward that no policy
   * weights.
   */
  scorings(runs) {
    const { gold, rewards } = this.server;
    const defaultReward = Object.keys(rewards).find((name) => rewards[name].default);
    const steered = runs.filter(({ policy }) => policy.method !== "none");
    const weightings = (steered.length > 0 ? steered : runs)
      .map(({ policy }) => this.weights(policy) ?? (defaultReward && { [defaultReward]: 1 }))
      .filter((weights) => weights !== undefined);
    const distinct = [...new Map(weightings.map((w) => [JSON.stringify(w), w])).values()];
    const scorings = distinct.map((weights, i) => {
      const name = distinct.length > 1 ? `score by ${"AB"[i]}'s rewards` : "score";
      return { name, rewards: weights, gold: false };
    });
    const needed = runs.length > 1 || steered.length === 0 ? scorings : [];
    if (!gold || weightings.some((weights) => gold in weights)) return needed;
    return [...needed, { name: gold, rewards: { [gold]: 1 }, gold: true }];
  }

  /** What the scores of a run mean, or the values of one of its rewards. */
  meaning({ policy }, reward) {
    const { rewards } = this.server;
    const defaultReward = Object.keys(rewards).find((name) => rewards[name].default);
    if (reward) return meaning({ [reward]: 1 }, rewards);
    return meaning(this.weights(policy) ?? { [defaultReward]: 1 }, rewards);
  }

  /** A lane's request, for code that sends it. The seed is that of its last run, if none is set. */
  coded({ editor, view }) {
    const settings = request.settings();
    const seed = settings.seed === undefined ? view.run?.seed : Number(settings.seed);
    const { stream, stream_options: options, ...body } = request.body(settings, seed);
    return {
      base: new URL("v1", document.baseURI).href,
      route: settings.route,
      body: { model: this.server.model, ...body, alignment: editor.value },
      keyed: this.key !== "",
    };
  }

  /** The reward weights of a policy; undefined for the default reward. */
  weights(policy) {
    return (typeof policy === "string" ? this.server.presets[policy] : policy)?.rewards;
  }

  async answer({ editor, view, name }, settings, body) {
    const run = new Run(editor.value, body.seed);
    run.asked = { ...body, model: this.server.model, alignment: editor.sent };
    view.begin(run);
    const { key } = this;
    const { signal } = this.running;
    await run.go(settings.route, run.asked, { key, signal }, () => view.update());
    if (run.error) this.explain(run.error, editor, name);
  }

  stop() {
    this.running?.abort();
  }

  /** Folds the form to a line, so that the text and its candidates have a phone's screen. */
  fold(prompt) {
    by("folded-prompt").textContent = prompt;
    by("folded-policy").textContent = this.active.map(({ editor }) => editor.title).join("  ·  ");
    by("folded").hidden = false;
    by("main").dataset.folded = "";
    scrollTo({ top: 0 });
  }

  unfold() {
    by("folded").hidden = true;
    delete by("main").dataset.folded;
  }

  /** Puts an error's words next to the field it names. */
  explain(error, editor, name) {
    if (error.param) this.unfold();
    if (error.status === 401) this.askForKey(error);
    if (!error.param) return;
    const whose = this.active.length > 1 ? `${name}: ` : "";
    if (error.param.split(".")[0] === "alignment") editor.complain(error.param, error.message);
    else request.complainOf(error.param, whose + error.message);
  }

  askForKey(error) {
    by("key-details").open = true;
    complain(by("key-field"), error.message);
  }

  /** The server cannot be asked what it can do. */
  trouble(error) {
    if (!(error instanceof ApiError)) console.error(error);
    if (error.status === 401) this.askForKey(error);
    const again = h("button", { type: "button", onclick: () => this.start() }, "Try again");
    by("trouble").replaceChildren(h("p", {}, error.message), again);
    by("trouble").hidden = false;
  }

  /** Takes another key, with which the server may do other things. */
  rekey() {
    sessionStorage.setItem(KEY, this.key);
    complain(by("key-field"), null);
    this.stop();
    this.start();
  }

  keydown(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.run();
    } else if (event.key === "Escape") this.stop();
  }

  enable() {
    by("run").disabled = this.running !== null;
    by("stop").disabled = this.running === null;
  }

  showLink(hash) {
    history.replaceState(null, "", hash);
    by("link").href = hash;
    by("link").hidden = by("copy").hidden = false;
    by("copied").textContent = "";
  }

  async copyLink() {
    const blocked = "The browser blocked copying; copy the link from the address bar.";
    by("copied").textContent = (await copied(location.href)) ? "copied" : blocked;
  }

  /** What `/v1/alignment/score` is asked for a run's values after each token; null if it has none. */
  valued({ report, text, asked }) {
    const names = Object.keys(report.rewards);
    const heads = names.filter((name) => this.server.rewards[name]?.kind === "value_head");
    if (heads.length === 0 || text === "") return null;
    const rewards = Object.fromEntries(heads.map((name) => [name, 1]));
    return { ...scoringBody(this.server, { asked, text }, rewards), per_token: true };
  }

  async valuesOf(run) {
    return (await score(this.valued(run), { key: this.key })).per_token;
  }
}

/** Brings an element into sight where it begins in the lower half of the window. */
function reveal(element) {
  const { top } = element.getBoundingClientRect();
  if (top > innerHeight / 2) element.scrollIntoView({ block: "start" });
}

/** Draws the scores of both lanes on one scale, where they are of the same rewards. */
function share(lanes) {
  const runs = lanes.map(({ view }) => view.run);
  if (runs.length < 2 || !runs.every(({ report }) => report?.trace)) return;
  const weighed = runs.map(({ policy }) => JSON.stringify(policy.rewards ?? null));
  if (new Set(weighed).size > 1) return;
  const bounds = runs.flatMap((run) => extent(run.decisions));
  lanes.forEach(({ view }) => view.scale([Math.min(...bounds), Math.max(...bounds)]));
}

/** Body of `POST /v1/alignment/score` for a run's text. */
function scoringBody({ model }, { asked, text }, rewards) {
  return { model, prompt: asked.messages ?? asked.prompt, responses: [text], rewards };
}

function drawn() {
  return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}

await new Page().start();
