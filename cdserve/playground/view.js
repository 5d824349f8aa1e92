// What a run has given: its text, figures, charts and decisions.

import { extent, klChart, tokenChart, valueChart } from "./chart.js";
import { DecisionList } from "./decisions.js";
import { counted, duration, h, number } from "./dom.js";

const NARROWEST = 320; // a chart's width in pixels where two stand side by side
const GAP = 10;

/** The result of one policy. */
export class ResultView {
  /**
   * @param prefix what the ids of its elements begin with.
   * @param name what it is called: "A" or "B".
   * @param values gives V after each token of a run's answer, by reward.
   */
  constructor(prefix, name, values) {
    this.prefix = prefix;
    this.values = values;
    this.progress = h("p", { class: "progress" }, "No run yet.");
    this.announcement = h("p", { class: "hidden", role: "status" });
    this.text = h("div", { class: "text", role: "region", "aria-label": `Text ${name}` });
    this.details = h("div", { class: "made" });
    const heading = h("h2", { class: "lane-name" }, `Result ${name}`);
    const parts = [heading, this.progress, this.announcement, this.text, this.details];
    this.element = h("section", { class: "result", "aria-label": `Result ${name}` }, parts);
    new ResizeObserver(() => this.draw()).observe(this.details);
  }

  /** Shows a run that begins. */
  begin(run) {
    this.run = run;
    this.shown = 0;
    this.domain = null;
    this.tokenValues = null;
    this.charts = null;
    this.list = new DecisionList(this.prefix);
    this.text.replaceChildren();
    this.details.replaceChildren(this.list.element);
    this.text.setAttribute("aria-busy", "true");
    this.element.dataset.state = "running";
    this.progress.textContent = "Waiting for the first text …";
    this.announcement.textContent = "Running.";
  }

  /** Brings it into sight where it begins below what is seen. */
  reveal() {
    const { top } = this.element.getBoundingClientRect();
    if (top > innerHeight * 0.8) this.element.scrollIntoView({ block: "start" });
  }

  /** Shows what has come since the last time. */
  update() {
    const { run } = this;
    for (const { text } of run.blocks.slice(this.shown)) {
      this.text.append(h("span", { class: "block" }, text));
    }
    this.shown = run.blocks.length;
    if (run.made.length > 0) this.list.show(run.decisions);
    if (run.state !== "running") this.end();
    else if (this.shown > 0) {
      const tokens = counted(run.tokens, "token");
      const first = `first after ${duration(run.first)}`;
      this.progress.textContent = `${counted(this.shown, "chunk")}, ${tokens}, ${first}`;
    }
  }

  /** Draws the scores between these bounds, which another run may share. */
  scale(domain) {
    this.domain = domain;
    this.draw();
  }

  end() {
    const { run } = this;
    this.text.setAttribute("aria-busy", "false");
    this.element.dataset.state = run.state;
    const words = ending(run);
    this.progress.textContent = words;
    this.announcement.textContent = words;
    const list = this.list.element;
    this.figures = run.blocks.length > 0 || run.report ? figures(run, []) : null;
    if (this.figures) list.before(this.figures);
    if (run.report === null) return;
    this.charts = h("div", { class: "charts" });
    list.before(this.charts);
    this.decisions = run.decisions;
    if (this.decisions.length === 0) {
      const words = "The policy's report has no trace, so the candidates are not shown.";
      list.replaceWith(h("p", { class: "note" }, words));
      return;
    }
    if (this.decisions.at(-1).end !== null) this.mark();
    this.scale(extent(this.decisions));
  }

  /** Adds scores of the text to the figures. */
  judge(scored) {
    const figured = figures(this.run, scored);
    this.figures.replaceWith(figured);
    this.figures = figured;
  }

  /** Marks in the text what each decision has given, the darker the higher its score. */
  mark() {
    const [low, high] = extent(this.decisions);
    const { text } = this.run;
    const spans = this.decisions.map(({ chosen, start, end }, i) => {
      const title = `decision ${i + 1}: ${number(chosen.score)}`;
      const attributes = { class: "block decided", title, onclick: () => this.list.open(i) };
      const span = h("span", attributes, text.slice(start, end));
      span.style.setProperty("--value", high > low ? (chosen.score - low) / (high - low) : 1);
      return span;
    });
    this.text.replaceChildren(...spans, text.slice(this.decisions.at(-1).end));
  }

  draw() {
    const room = this.details.clientWidth;
    if (!this.charts || !this.domain || room === 0) return;
    const width = room >= 2 * NARROWEST + GAP ? Math.floor((room - GAP) / 2) : room;
    const { decisions, run, domain } = this;
    const single = decisions.length === 1;
    const budget = run.report.kl.budget ?? null;
    const onopen = (i) => this.list.open(i);
    const charts = [];
    if (!single || decisions[0].candidates.length > 1) {
      const title = single ? "Scores of the candidates, in order" : "Value after each decision";
      charts.push(figure(title, valueChart({ decisions, width, domain, onopen })));
    }
    if (!single) {
      const steering = steered(run);
      const more = steering > 0 ? `; steering adds ${number(steering)}` : "";
      const title = `KL bound spent by the selections, nats${more}`;
      charts.push(figure(title, klChart({ decisions, budget, width })));
    }
    for (const [name, values] of Object.entries(this.tokenValues ?? {})) {
      charts.push(figure(`${name} after each token`, tokenChart({ values, width })));
    }
    this.charts.replaceChildren(...charts, ...this.asker());
  }

  /** Asks for the value after each token, once. */
  asker() {
    if (this.tokenValues || !this.values.known(this.run)) return [];
    const ask = async ({ target }) => {
      target.disabled = true;
      try {
        this.tokenValues = await this.values.of(this.run);
        this.draw();
      } catch (error) {
        target.replaceWith(h("p", { class: "problem", role: "alert" }, error.message));
      }
    };
    const button = h("button", { type: "button", class: "link", onclick: ask });
    button.textContent = "Show the value after each token";
    return [h("p", { class: "note" }, button)];
  }
}

function figure(title, chart) {
  return h("figure", {}, h("figcaption", {}, title), chart);
}

/** Nats of the bound that steered tokens took, beside the selections. */
function steered({ report, decisions }) {
  const rest = report.kl.bound - decisions.at(-1).spent;
  return rest > 1e-9 ? rest : 0;
}

/** How a run ended, in words. */
function ending(run) {
  if (run.state === "failed") return run.error.message;
  const sizes = `${counted(run.blocks.length, "chunk")}, ${counted(run.tokens, "token")}`;
  if (run.state === "stopped") return `Stopped after ${sizes}, ${duration(run.total)}.`;
  const why = { stop: "ended by itself", length: "reached max_tokens" }[run.finish] ?? run.finish;
  return `Done in ${duration(run.total)}: ${sizes}, ${why}.`;
}

/** The run's figures, with scores of its text. */
function figures(run, scored) {
  const { report, tokens } = run;
  const gaps = run.gaps.slice(1).sort((a, b) => a - b);
  const between = gaps.length > 0 ? duration(gaps[Math.floor(gaps.length / 2)]) : "–";
  const found = report ? aligned(report, tokens) : [];
  for (const { name, score, rewards, gold } of scored) {
    if (gold) found.push([name, number(score), "held-out reward"]);
    else if (!report) found.unshift([name, number(score), Object.keys(rewards).join(", ")]);
  }
  return h(
    "dl",
    { class: "figures" },
    found.map(([name, ...shown]) => item(name, ...shown)),
    item("first text", duration(run.first)),
    item("between chunks", between, gaps.length > 1 ? "median" : ""),
    item("total", duration(run.total), `seed ${run.seed}`),
  );
}

function aligned(report, tokens) {
  const { score, rewards, scores, kl, ties, candidates } = report;
  const ratio = tokens > 0 ? `${(report.candidate_tokens / tokens).toFixed(1)} per token` : "";
  const each = Object.entries(rewards);
  const spread = `${number(scores.min)} … ${number(scores.max)}`;
  const spent = kl.estimator === "bound" ? "nats" : `estimate ${number(kl.estimate)}`;
  const of = kl.budget === undefined ? spent : `of ${number(kl.budget)} nats`;
  const found = [
    ["score", number(score), candidates > 1 ? spread : ""],
    ...(each.length > 1 ? each.map(([name, value]) => [name, number(value), "reward"]) : []),
    ["KL bound", number(kl.bound), of, kl.budget === undefined ? null : meter(kl)],
    ["candidates", candidates.toLocaleString("en"), ties > 0 ? counted(ties, "tie") : ""],
    ["tokens drawn", report.candidate_tokens.toLocaleString("en"), ratio],
  ];
  if (kl.flag !== "ok") found.push(["KL flag", kl.flag, "see docs/methods.md"]);
  if (kl.limited?.decisions) found.push(["limited", counted(kl.limited.decisions, "decision")]);
  if (kl.limited?.tokens) found.push(["not steered", counted(kl.limited.tokens, "token")]);
  if (report.deadline) {
    const { ms, passed } = report.deadline;
    found.push(["deadline", passed ? "passed" : "kept", duration(ms)]);
  }
  if (report.accepted !== undefined) found.push(["accepted", report.accepted ? "yes" : "no", ""]);
  for (const [name, count] of Object.entries(report.failed ?? {})) {
    found.push([`${name} failed`, counted(count, "decision"), ""]);
  }
  return found;
}

function item(name, value, about = "", extra = null) {
  const small = about && h("span", { class: "about" }, about);
  return h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, value), small, extra));
}

function meter({ bound, budget }) {
  const label = `${number(bound)} of ${number(budget)} nats`;
  return h("meter", { min: 0, max: budget || 1, value: bound, "aria-label": label });
}
