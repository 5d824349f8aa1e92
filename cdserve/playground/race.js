// The candidates of one block, side by side: under way, then with their outcome.

import { counted, duration, h, number } from "./dom.js";
import { fraction } from "./scale.js";

const HOLD = 900; // milliseconds that an outcome stays before the next candidates replace it
const MANY = 8; // more candidates than these have smaller cards
const CHARACTER = 7.2; // pixels of width
const TOKEN = 4.8; // characters
const LINES = 2; // of a card at least
const PHONE = matchMedia("(max-width: 700px)");
const STILL = matchMedia("(prefers-reduced-motion: reduce)");

/** A panel of cards, one for each candidate. */
export class Race {
  /** @param onselect called with the index of the decision to show. */
  constructor(onselect) {
    this.heading = h("h3");
    this.facts = h("span", { class: "facts" });
    const step = (by, label, sign) => {
      const onclick = () => onselect(this.index + by);
      return h("button", { type: "button", "aria-label": label, onclick }, sign);
    };
    this.previous = step(-1, "Previous block", "‹");
    this.next = step(1, "Next block", "›");
    this.steps = h("span", { class: "steps" }, this.previous, this.next);
    const head = h("div", { class: "race-head" }, this.heading, this.facts, this.steps);
    this.list = h("ol", { class: "cards" });
    const label = { class: "race", "aria-label": "Candidates", hidden: true };
    this.element = h("section", label, head, this.list);
    this.cards = [];
  }

  /**
   * Begins a run.
   *
   * @param length of a candidate at most, in tokens; the cards have room for it.
   */
  clear(length = 0) {
    clearTimeout(this.timer);
    this.length = length;
    this.busyUntil = 0;
    this.pending = null;
    this.fill(0, null, false);
    this.element.hidden = true;
    this.steps.hidden = true;
  }

  /**
   * Shows candidates under way, once the last outcome has been seen.
   *
   * @param state `index` of the decision, `candidates`, `from`: the prefix's score or null, `domain`,
   *     and `single`: whether there is one decision only.
   */
  draw(state) {
    const wait = this.busyUntil - performance.now();
    if (wait <= 0) return this.drawNow(state);
    if (this.pending === null) {
      this.timer = setTimeout(() => this.pending && this.drawNow(this.pending), wait);
    }
    this.pending = state;
  }

  drawNow({ index, candidates, from, domain, single }) {
    this.pending = null;
    if (this.index !== index || this.state !== "running" || this.cards.length !== candidates.length) {
      this.fill(candidates.length, from === null ? 0 : fraction(from, domain), single);
    }
    this.index = index;
    this.element.dataset.state = this.state = "running";
    this.steps.hidden = true;
    this.heading.textContent = single ? "Candidates" : `Block ${index + 1}`;
    this.facts.textContent = `${counted(candidates.length, "candidate")} under way`;
    candidates.forEach((candidate, i) => this.cards[i].show(candidate, domain, "running"));
    this.element.hidden = false;
  }

  /**
   * Shows the outcome of a decision.
   *
   * @param decision as of `Run.decisions`.
   * @param about as of `draw`, with the `count` of the decisions, and `over`: whether the run is.
   * @returns the text of the card that was selected.
   */
  settle(decision, { index, count, from, domain, over, single }) {
    clearTimeout(this.timer);
    this.pending = null;
    this.busyUntil = performance.now() + HOLD;
    const { candidates } = decision;
    if (this.index !== index || this.cards.length !== candidates.length) {
      this.fill(candidates.length, from === null ? 0 : fraction(from, domain), single);
    }
    this.index = index;
    this.element.dataset.state = this.state = "settled";
    const block = `Block ${index + 1}${over ? ` of ${count}` : ""}`;
    this.heading.textContent = single ? "Candidates" : block;
    const { kl, milliseconds } = decision;
    const facts = [
      `selected from ${candidates.length}`,
      kl.bound > 0 ? `KL ≤ ${number(kl.bound)} nats` : null,
      milliseconds === null ? null : duration(milliseconds),
    ];
    this.facts.textContent = facts.filter(Boolean).join(" · ");
    candidates.forEach((candidate, i) => {
      this.cards[i].show(candidate, domain, candidate.chosen ? "taken" : "lost");
    });
    this.steps.hidden = !over || count < 2;
    this.previous.disabled = index === 0;
    this.next.disabled = index === count - 1;
    this.element.hidden = false;
    return this.cards[candidates.findIndex(({ chosen }) => chosen)].text;
  }

  /** Empty cards whose bars begin at the value of the prefix, with room for their texts. */
  fill(count, from, single) {
    this.cards = Array.from({ length: count }, () => new Card(from));
    this.list.replaceChildren(...this.cards.map(({ element }) => element));
    this.list.classList.toggle("whole", single);
    const columns = count > 6 ? 4 : count > 4 ? 3 : Math.max(1, count);
    const width = this.element.parentElement.clientWidth / (PHONE.matches ? 2 : columns) - 36;
    const lines = Math.ceil((this.length * TOKEN * CHARACTER) / width);
    this.list.style.setProperty("--columns", columns);
    const most = !single ? 14 : count > MANY ? 3 : count > 4 ? 7 : 10;
    this.list.style.setProperty("--lines", Math.min(most, Math.max(LINES, lines)));
    this.index = null;
    void this.list.offsetWidth; // the bars' transitions start from here
  }
}

class Card {
  constructor(from) {
    this.score = h("b", { class: "score" });
    this.note = h("span", { class: "facts" });
    this.bar = h("span", { class: "track", "aria-hidden": "true" });
    this.text = h("p", { class: "card-text" });
    const head = h("div", { class: "card-head" }, this.score, this.note);
    this.element = h("li", { class: "card" }, head, this.bar, h("div", { class: "window" }, this.text));
    this.bar.style.setProperty("--value", from);
    this.bar.style.setProperty("--from", from);
  }

  show({ text, tokens, score }, domain, state) {
    this.element.dataset.state = state;
    this.score.textContent = score === null ? "–" : number(score);
    const outcome = { taken: "taken", lost: "dropped" }[state];
    this.note.textContent = outcome ?? counted(tokens, "token");
    if (score !== null) this.bar.style.setProperty("--value", fraction(score, domain));
    const shown = text.replace(/^ /, "");
    if (this.text.textContent !== shown) this.text.textContent = shown;
  }
}

/** Moves a copy of a candidate's text to where it joins the response. */
export function join(from, to) {
  if (STILL.matches || !to || document.hidden) return;
  const [start, end] = [from.getBoundingClientRect(), to.getClientRects()[0]];
  if (!end || start.width === 0 || start.top > innerHeight || end.bottom < 0) return;
  const ghost = h("p", { class: "ghost", "aria-hidden": "true" }, from.textContent);
  ghost.style.left = `${start.left}px`;
  ghost.style.top = `${start.top}px`;
  ghost.style.width = `${start.width}px`;
  document.body.append(ghost);
  const by = `translate(${end.left - start.left}px, ${end.top - start.top}px)`;
  const frames = [{ transform: "none", opacity: 0.9 }, { transform: by, opacity: 0 }];
  const timing = { duration: 450, easing: "cubic-bezier(.4, 0, .2, 1)" };
  ghost.animate(frames, timing).finished.finally(() => ghost.remove());
}
