// One answer under one policy, as it comes.

import { ApiError, stream } from "./api.js";

/**
 * What has come of a run so far: `blocks` of text, the decisions `made`, the `drafts` of the next
 * one, then the `report`, and how it ended.
 */
export class Run {
  constructor(policy, seed) {
    this.policy = policy;
    this.seed = seed;
    this.state = "running"; // then "done", "stopped" or "failed"
    this.blocks = [];
    this.tokens = 0;
    this.made = [];
    this.drafts = null;
    this.report = null;
    this.finish = null;
    this.error = null;
    this.began = performance.now();
    this.total = null;
  }

  /** Asks the server, and calls `onchange` after each thing that comes. */
  async go(route, body, { key, signal }, onchange) {
    try {
      for await (const { chunk } of stream(route, body, { key, signal })) {
        if (chunk) this.add(chunk);
        onchange();
      }
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed") this.error = error;
      if (this.state === "failed" && !(error instanceof ApiError)) console.error(error);
    }
    this.drafts = null;
    this.total = this.elapsed;
    onchange();
  }

  /** Milliseconds since it began. */
  get elapsed() {
    return performance.now() - this.began;
  }

  get text() {
    return this.blocks.map(({ text }) => text).join("");
  }

  /** Milliseconds to the first text; null before it. */
  get first() {
    return this.blocks[0]?.at ?? null;
  }

  /** Milliseconds from one block to the next, the first one's from the start. */
  get gaps() {
    return this.blocks.map(({ at }, i) => at - (this.blocks[i - 1]?.at ?? 0));
  }

  /**
   * The decisions so far: `candidates`, the `chosen` one, `kl` and `spent` so far in nats, and
   * where the text has them: `milliseconds`, if its block came by itself, and `start` and `end`.
   */
  get decisions() {
    const { text, gaps } = this;
    let spent = 0;
    let start = 0;
    return this.made.map(({ kl, candidates }, i) => {
      const chosen = candidates.find((candidate) => candidate.chosen);
      spent += kl.bound;
      const placed = start !== null && text.startsWith(chosen.text, start);
      const end = placed ? start + chosen.text.length : null;
      const alone = this.blocks[i]?.text === chosen.text;
      const decision = { candidates, chosen, kl, spent, start: placed ? start : null, end };
      start = end;
      return { ...decision, milliseconds: alone ? gaps[i] : null };
    });
  }

  add(chunk) {
    const decisions = chunk.alignment_decisions ?? [];
    this.made.push(...decisions);
    if (decisions.length > 0) this.drafts = null;
    this.drafts = chunk.alignment_candidates?.[0].candidates ?? this.drafts;
    this.report = chunk.alignment ?? this.report;
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    for (const choice of chunk.choices) {
      const text = choice.text ?? choice.delta?.content ?? "";
      if (text !== "") this.blocks.push({ text, at: this.elapsed, tokens: this.tokens });
      this.finish = choice.finish_reason ?? this.finish;
    }
  }
}
