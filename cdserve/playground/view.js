// What a run has given: its text, figures, charts and decisions.

import { extent, klChart, tokenChart, valueChart } from "./chart.js";
import { DecisionList } from "./decisions.js";
import { counted, duration, h, number } from "./dom.js";
import { join, Race } from "./race.js";
import { fraction, Legend } from "./scale.js";

const NARROWEST = 320; // a chart's width in pixels where two stand side by side
const GAP = 10;
const FLAGS = {
  inspect: "8 nats or more: read some answers",
  high: "15 nats or more: likely over-optimised",
};

/** The result of one policy. */
export class ResultView {
  /**
   * @param prefix what the ids of its elements begin with.
   * @param name what it is called: "A" or "B".
   * @param values `known`, `of`: V after each token of a run's answer, by reward; `meaning` of the
   *     scores of a run, or of a reward.
   */
  constructor(prefix, name, values) {
    this.prefix = prefix;
    this.values = values;
    this.words = h("span", {}, "No run yet.");
    this.clock = h("span", { class: "clock", role: "timer", "aria-live": "off" });
    const pulse = h("span", { class: "pulse", "aria-hidden": "true" }, [h("i"), h("i"), h("i")]);
    this.progress = h("p", { class: "progress" }, pulse, this.words, this.clock);
    this.announcement = h("p", { class: "hidden", role: "status" });
    const label = { role: "region", "aria-label": `Text ${name}`, "aria-live": "polite" };
    this.text = h("div", { class: "text", ...label });
    this.legend = new Legend();
    this.race = new Race((i) => this.inspect(i));
    this.details = h("div", { class: "made" });
    const heading = h("h2", { class: "lane-name" }, `Result ${name}`);
    const parts = [heading, this.progress, this.announcement, this.text, this.legend.element];
    const attributes = { class: "result", "aria-label": `Result ${name}` };
    this.element = h("section", attributes, parts, this.race.element, this.details);
    const resized = () => this.details.clientWidth !== this.width && this.draw();
    new ResizeObserver(resized).observe(this.details);
  }

  /** Shows a run that begins. */
  begin(run) {
    this.run = run;
    this.shown = { blocks: 0, decisions: 0 };
    this.decisions = [];
    this.marks = [];
    this.rest = h("span", { class: "block" });
    this.domain = null;
    this.tokenValues = null;
    this.charts = null;
    this.list = new DecisionList(this.prefix);
    this.text.replaceChildren();
    this.legend.hide();
    this.race.clear(run.policy.m ?? run.asked.max_tokens);
    this.details.replaceChildren(this.list.element);
    this.text.setAttribute("aria-busy", "true");
    this.element.dataset.state = "running";
    this.words.textContent = "Waiting for the first text";
    this.announcement.textContent = "Running.";
    this.tick();
    this.ticking = setInterval(() => this.tick(), 100);
  }

  /** Shows what has come since the last time. */
  update() {
    const { run, shown } = this;
    const decided = run.made.length > shown.decisions;
    const grown = run.blocks.length > shown.blocks;
    if (decided || grown) {
      this.decisions = run.decisions;
      this.write();
      if (run.made.length > 0) this.list.show(this.decisions);
      // Blocks are announced as they come, tokens once they all have.
      if (decided) this.text.setAttribute("aria-busy", "false");
    }
    this.shown = { blocks: run.blocks.length, decisions: run.made.length };
    if (run.state !== "running") return this.end();
    this.colour(running(this.decisions, run.drafts));
    if (decided) this.settle(this.decisions.length - 1);
    else if (run.drafts?.length > (this.single ? 1 : 0)) this.race.draw(this.underWay());
    this.words.textContent = progress(run);
  }

  /** Draws the scores between these bounds, which another run may share. */
  scale(domain) {
    this.colour(domain);
    this.draw();
  }

  tick() {
    this.clock.textContent = `${(this.run.elapsed / 1000).toFixed(1)} s`;
  }

  /** Writes the text so far: a span for each decision that it has reached, then the rest. */
  write() {
    const { text } = this.run;
    const reached = this.decisions.filter(({ end }) => end !== null);
    const marks = reached.slice(this.marks.length).map(({ chosen, start, end }, i) => {
      const index = this.marks.length + i;
      const title = `decision ${index + 1}: ${number(chosen.score)}`;
      const attributes = { class: "block decided", title, onclick: () => this.inspect(index) };
      return h("span", attributes, text.slice(start, end));
    });
    this.marks.push(...marks);
    this.rest.textContent = text.slice(reached.at(-1)?.end ?? 0);
    const more = this.rest.textContent !== "";
    if (marks.length === 0 && this.rest.isConnected === more) return;
    this.rest.remove();
    this.text.append(...marks, ...(more ? [this.rest] : []));
  }

  /** Colours each block of the text by its value in a domain, and says so in the legend. */
  colour(domain) {
    this.domain = domain;
    if (!domain || this.marks.length === 0) return;
    this.marks.forEach(({ style }, i) => {
      style.setProperty("--value", fraction(this.decisions[i].chosen.score, domain));
    });
    const about = this.single ? "Value of the text" : "Value after each block";
    if (domain[0] < domain[1]) this.legend.show(about, domain, this.values.meaning(this.run));
  }

  /** Whether there is one decision only, as far as the policy and the decisions so far say. */
  get single() {
    const { policy, state } = this.run;
    return this.decisions.length < 2 && (policy.m === undefined || state !== "running");
  }

  /** What the race shows of the candidates under way. */
  underWay() {
    const { drafts } = this.run;
    const index = this.decisions.length;
    const from = this.decisions.at(-1)?.chosen.score ?? null;
    const domain = this.domain ?? [0, 1];
    return { index, candidates: drafts, from, domain, single: this.single };
  }

  /** Shows the outcome of a decision between several candidates; its winner joins the text. */
  settle(index, { over = false } = {}) {
    const decision = this.decisions[index];
    if (!decision || (this.single && decision.candidates.length < 2)) return;
    const from = this.decisions[index - 1]?.chosen.score ?? null;
    const count = this.decisions.length;
    const state = { index, count, from, domain: this.domain, over, single: this.single };
    const winner = this.race.settle(decision, state);
    if (!over) join(winner, this.marks[index]);
  }

  /** Shows the candidates of a decision of a run that has ended, and marks its block. */
  inspect(index) {
    if (this.run.state === "running") return this.list.open(index);
    this.settle(index, { over: true });
    this.marks.forEach(({ classList }, i) => classList.toggle("current", i === index));
    this.race.element.scrollIntoView({ block: "nearest" });
  }

  end() {
    const { run } = this;
    clearInterval(this.ticking);
    this.text.setAttribute("aria-busy", "false");
    this.element.dataset.state = run.state;
    const words = ending(run);
    this.words.textContent = words;
    this.clock.textContent = "";
    this.announcement.textContent = words;
    const list = this.list.element;
    this.figures = run.blocks.length > 0 || run.report ? figures(run, []) : null;
    if (this.figures) list.before(this.figures);
    if (this.decisions.length > 0) this.colour(extent(this.decisions));
    if (this.decisions.length === 0) this.race.clear();
    else this.settle(this.decisions.length - 1, { over: true });
    if (run.report === null) return;
    this.charts = h("div", { class: "charts" });
    this.asker = this.offer(); // one for all drawings: a drawing between press and release keeps it
    list.before(this.charts);
    if (this.decisions.length === 0) {
      const words = "The policy's report has no trace, so the candidates are not shown.";
      list.replaceWith(h("p", { class: "note" }, words));
      return;
    }
    this.scale(extent(this.decisions));
  }

  /** Adds scores of the text to the figures. */
  judge(scored) {
    const figured = figures(this.run, scored);
    this.figures.replaceWith(figured);
    this.figures = figured;
  }

  /** Colours a text that came token by token by the value after each; a chunk may hold several. */
  colourTokens() {
    const [[name, values]] = Object.entries(this.tokenValues);
    const { blocks, tokens } = this.run;
    const same = [tokens, tokens + 1].includes(values.length); // the last may be EOS
    if (blocks.length <= this.decisions.length || !same) return;
    const domain = [Math.min(...values), Math.max(...values)];
    const spans = blocks.map(({ text, tokens: length }) => {
      const value = values[length - 1];
      const span = h("span", { class: "block valued", title: number(value) }, text);
      span.style.setProperty("--value", fraction(value, domain));
      return span;
    });
    this.text.replaceChildren(...spans);
    this.legend.show("Value after each token", domain, this.values.meaning(this.run, name));
  }

  draw() {
    const room = this.details.clientWidth;
    if (!this.charts || !this.domain || room === 0) return;
    this.width = room;
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
    this.charts.replaceChildren(...charts, ...(this.tokenValues ? [] : this.asker));
  }

  /** A button that asks for the value after each token, if a head gives it. */
  offer() {
    if (!this.values.known(this.run)) return [];
    const ask = async ({ target }) => {
      target.disabled = true;
      try {
        this.tokenValues = await this.values.of(this.run);
        this.colourTokens();
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

/** Bounds of all scores of a run under way; null before the first. */
function running(decisions, drafts) {
  const decided = decisions.length > 0 ? extent(decisions) : [];
  const drafted = (drafts ?? []).map(({ score }) => score).filter((score) => score !== null);
  const scores = [...decided, ...drafted];
  return scores.length > 0 ? [Math.min(...scores), Math.max(...scores)] : null;
}

/** How far a run is, in words. */
function progress({ blocks, tokens, first, drafts }) {
  if (blocks.length > 0) {
    const sizes = `${counted(blocks.length, "chunk")}, ${counted(tokens, "token")}`;
    return `${sizes}, first after ${duration(first)}`;
  }
  if (!drafts) return "Waiting for the first text";
  const longest = Math.max(...drafts.map((draft) => draft.tokens));
  return `${counted(drafts.length, "candidate")} under way, ${counted(longest, "token")}`;
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
  if (kl.flag !== "ok") found.push(["KL flag", kl.flag, FLAGS[kl.flag]]);
  if (kl.limited?.decisions) found.push(["limited", counted(kl.limited.decisions, "decision")]);
  if (kl.limited?.tokens) found.push(["not steered", counted(kl.limited.tokens, "token")]);
  if (report.deadline) {
    const { ms, passed } = report.deadline;
    found.push(["deadline", passed ? "passed" : "kept", duration(ms)]);
  }
  if (report.draws) {
    const { made, allowed } = report.draws;
    found.push(["drawn", `${made} of ${allowed}`, `${counted(report.saved_tokens, "token")} saved`]);
  }
  if (report.votes) {
    const [winner] = report.votes.classes;
    const votes = winner ? `weight ${number(winner.weight)}` : "";
    found.push(["answer", winner?.answer ?? "none", votes]);
  }
  if (report.comparisons) {
    const { judge, made, disagreements } = report.comparisons;
    const unsure = disagreements > 0 ? `order decides ${disagreements}` : "";
    found.push([`compared by ${judge}`, counted(made, "pair"), unsure]);
  }
  if (report.accepted !== undefined) found.push(["accepted", report.accepted ? "yes" : "no", ""]);
  if (report.exact !== undefined) found.push(["exact draw", report.exact ? "yes" : "no", ""]);
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
