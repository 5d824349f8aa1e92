// The candidates of one block, side by side: under way, then with their outcome.

import { counted, duration, h, number } from "./dom.js";
import { fraction } from "./scale.js";

const HOLD = 900; // milliseconds that an outcome stays before the next candidates replace it
const MANY = 8; // more candidates than these have smaller cards
const CHARACTER = 7.2; // pixels of width
const TOKEN = 4.8; // characters
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
    this.index = null;
    this.list.replaceChildren();
    this.cards = [];
    this.element.hidden = true;
    this.steps.hidden = true;
  }

  /**
   * Shows candidates under way, once the last outcome has been seen.
   *
   * @param state `index` of the decision; `candidates`; `from`: score of the prefix, or null; the
   *     `domain` of the bars; `single`: whether there is one decision only.
   */
  draw(state) {
    const wait = this.busyUntil - performance.now();
    if (wait <= 0) return this.drawNow(state);
    if (this.pending === null) {
      this.timer = setTimeout(() => this.pending && this.drawNow(this.pending), wait);
    }
    this.pending = state;
  }

  drawNow(state) {
    const { index, candidates, single } = state;
    this.pending = null;
    this.steps.hidden = true;
    this.heading.textContent = single ? "Candidates" : `Block ${index + 1}`;
    this.facts.textContent = `${counted(candidates.length, "candidate")} under way`;
    this.show(state, "running", () => "running");
  }

  /**
   * Shows the outcome of a decision.
   *
   * @param decision as of `Run.decisions`.
   * @param state as of `draw`, with the `count` of the decisions, and `over`: whether the run is.
   * @returns the text of the card that was selected.
   */
  settle({ candidates, kl, milliseconds }, state) {
    const { index, count, over, single } = state;
    clearTimeout(this.timer);
    this.pending = null;
    this.busyUntil = performance.now() + HOLD;
    const block = `Block ${index + 1}${over ? ` of ${count}` : ""}`;
    this.heading.textContent = single ? "Candidates" : block;
    const facts = [
      `selected from ${candidates.length}`,
      kl.bound > 0 ? `KL ≤ ${number(kl.bound)} nats` : null,
      milliseconds === null ? null : duration(milliseconds),
    ];
    this.facts.textContent = facts.filter(Boolean).join(" · ");
    this.steps.hidden = !over || count < 2;
    this.previous.disabled = index === 0;
    this.next.disabled = index === count - 1;
    const outcome = ({ chosen }) => (chosen ? "taken" : "lost");
    this.show({ ...state, candidates }, "settled", outcome);
    return this.cards[candidates.findIndex(({ chosen }) => chosen)].text;
  }

  /** Shows candidates; those of another block on new cards, whose bars begin at the prefix. */
  show({ index, candidates, from, domain, single }, state, outcome) {
    const start = from === null ? null : fraction(from, domain);
    const begins = state === "running" && this.state !== "running";
    this.element.hidden = false;
    this.element.dataset.state = this.state = state;
    if (begins || this.index !== index || this.cards.length !== candidates.length) {
      this.fill(candidates.length, start ?? 0, single);
    }
    this.index = index;
    candidates.forEach((one, i) => this.cards[i].show(one, { start, domain, state: outcome(one) }));
  }

  fill(count, start, single) {
    this.cards = Array.from({ length: count }, () => new Card(start));
    this.list.replaceChildren(...this.cards.map(({ element }) => element));
    this.list.classList.toggle("whole", single);
    const columns = count > 6 ? 4 : count > 4 ? 3 : Math.max(1, count);
    const width = this.element.parentElement.clientWidth / (PHONE.matches ? 2 : columns) - 36;
    const lines = Math.ceil((this.length * TOKEN * CHARACTER) / width);
    const most = !single ? 14 : count > MANY ? 3 : count > 4 ? 7 : 10; // whole answers can be long
    this.list.style.setProperty("--columns", columns);
    this.list.style.setProperty("--lines", Math.min(most, Math.max(2, lines)));
    void this.list.offsetWidth; // the bars' transitions start from here
  }
}

class Card {
  constructor(start) {
    this.score = h("b", { class: "score" });
    this.note = h("span", { class: "facts" });
    this.bar = h("span", { class: "track", "aria-hidden": "true" });
    this.text = h("p", { class: "card-text" });
    const head = h("div", { class: "card-head" }, this.score, this.note);
    const body = h("div", { class: "window" }, this.text);
    this.element = h("li", { class: "card" }, head, this.bar, body);
    this.bar.style.setProperty("--value", start);
  }

  /** `start`: where the prefix's score lies in the domain; null for none. */
  show({ text, tokens, score }, { start, domain, state }) {
    this.element.dataset.state = state;
    this.score.textContent = score === null ? "–" : number(score);
    const outcome = { taken: "taken", lost: "dropped" }[state];
    this.note.textContent = outcome ?? counted(tokens, "token");
    if (score !== null) this.bar.style.setProperty("--value", fraction(score, domain));
    if (start !== null) this.bar.style.setProperty("--from", start);
    this.bar.toggleAttribute("data-from", start !== null);
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
