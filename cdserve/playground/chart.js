// Small charts, drawn as SVG: values along the text, and KL spent.

import { number, svg } from "./dom.js";

const HEIGHT = 120;
const MARGIN = { left: 52, right: 12, top: 8, bottom: 20 };

/** Least and greatest score of all candidates of some decisions. */
export function extent(decisions) {
  const scores = decisions.flatMap(({ candidates }) => candidates.map(({ score }) => score));
  return [Math.min(...scores), Math.max(...scores)];
}

/**
 * Scores of the candidates of each decision, and the line of those taken. A single decision's are
 * drawn in their order, so that their spread can be seen.
 *
 * @param width in pixels.
 * @param domain least and greatest score of the axis.
 * @param onopen called with the index of a decision that is clicked.
 */
export function valueChart({ decisions, width, domain, onopen }) {
  if (decisions.length === 1) return rankChart({ decision: decisions[0], width, domain, onopen });
  const label = `Score of the block taken, by decision: ${decisions
    .map(({ chosen }) => number(chosen.score))
    .join(", ")}`;
  const frame = new Frame(width, decisions.length, padded(domain), label);
  frame.axis();
  decisions.forEach(({ candidates }, i) => {
    const scores = candidates.map(({ score }) => score);
    frame.line([i, Math.min(...scores)], [i, Math.max(...scores)], "spread");
    candidates.forEach(({ score, chosen }) => chosen || frame.dot(i, score, "candidate", 2.5));
  });
  frame.path(decisions.map(({ chosen }, i) => [i, chosen.score]), "taken");
  decisions.forEach(({ chosen, candidates }, i) => {
    frame.dot(i, chosen.score, "taken", 4);
    const title = `decision ${i + 1}: ${number(chosen.score)}, one of ${candidates.length}`;
    frame.target(i, title, () => onopen(i));
  });
  return frame.element;
}

function rankChart({ decision, width, domain, onopen }) {
  const ordered = [...decision.candidates].sort((a, b) => a.score - b.score);
  const label = `Scores of ${ordered.length} candidates in their order, from ${number(
    ordered[0].score,
  )} to ${number(ordered.at(-1).score)}; ${number(decision.chosen.score)} was taken`;
  const frame = new Frame(width, ordered.length, padded(domain), label);
  frame.axis();
  ordered.forEach(({ score, chosen }, i) => {
    frame.dot(i, score, chosen ? "taken" : "candidate", chosen ? 4 : 3);
    frame.target(i, `${number(score)}${chosen ? ", selected" : ""}`, () => onopen(0));
  });
  return frame.element;
}

/** V after each token of the response, as the head gives it. */
export function tokenChart({ values, width }) {
  const label = `Value after each of ${values.length} tokens, ${number(values.at(-1))} at the end`;
  const domain = padded([Math.min(...values), Math.max(...values)]);
  const frame = new Frame(width, values.length, domain, label);
  frame.axis();
  frame.path(values.map((value, i) => [i, value]), "taken");
  return frame.element;
}

/**
 * Nats spent after each decision, and the budget.
 *
 * @param budget nats; null for none.
 */
export function klChart({ decisions, budget, width }) {
  const spent = decisions.map((decision) => decision.spent);
  const top = Math.max(spent.at(-1), budget ?? 0) || 1;
  const end = number(spent.at(-1));
  const label = `KL bound of the selections after each decision, ${end} nats at the end`;
  const frame = new Frame(width, decisions.length, [0, top * 1.1], label);
  frame.axis();
  frame.path([[-0.5, 0], ...spent.flatMap((nats, i) => [[i - 0.5, nats], [i + 0.5, nats]])], "kl");
  if (budget !== null) frame.line([-0.5, budget], [decisions.length - 0.5, budget], "budget");
  return frame.element;
}

class Frame {
  constructor(width, columns, domain, label) {
    const size = { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` };
    this.element = svg("svg", { ...size, role: "img", "aria-label": label, class: "chart" });
    this.columns = columns;
    this.width = width - MARGIN.left - MARGIN.right;
    this.height = HEIGHT - MARGIN.top - MARGIN.bottom;
    this.domain = domain;
  }

  x(column) {
    return MARGIN.left + ((column + 0.5) / this.columns) * this.width;
  }

  y(value) {
    const [low, high] = this.domain;
    return MARGIN.top + (1 - (value - low) / (high - low)) * this.height;
  }

  axis() {
    const right = MARGIN.left + this.width;
    for (const value of ticks(this.domain)) {
      const y = this.y(value);
      this.add("line", { x1: MARGIN.left, x2: right, y1: y, y2: y, class: "grid" });
      this.add("text", { x: MARGIN.left - 8, y: y + 3.5, class: "tick left" }, round(value));
    }
    const every = Math.ceil(this.columns / Math.max(1, Math.floor(this.width / 36)));
    for (let i = 0; i < this.columns; i += every) {
      this.add("text", { x: this.x(i), y: HEIGHT - 5, class: "tick" }, String(i + 1));
    }
  }

  line([fromX, fromY], [toX, toY], kind) {
    const ends = { x1: this.x(fromX), y1: this.y(fromY), x2: this.x(toX), y2: this.y(toY) };
    this.add("line", { ...ends, class: kind });
  }

  path(points, kind) {
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${this.x(x)} ${this.y(y)}`).join("");
    this.add("path", { d, class: kind });
  }

  dot(column, value, kind, r) {
    this.add("circle", { cx: this.x(column), cy: this.y(value), r, class: kind });
  }

  target(column, title, onclick) {
    const width = this.width / this.columns;
    const box = { x: this.x(column - 0.5), y: 0, width, height: HEIGHT, class: "target", onclick };
    this.element.append(svg("rect", box, svg("title", {}, title)));
  }

  add(tag, attributes, ...children) {
    this.element.append(svg(tag, attributes, ...children));
  }
}

function padded([low, high]) {
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.5;
  return [low - margin, high + margin];
}

function round(value) {
  return String(Number(value.toPrecision(3)) || 0).replace("-", "−");
}

/** Two to five round numbers within a domain. */
function ticks([low, high]) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: count }, (_, i) => (first + i) * step);
}
