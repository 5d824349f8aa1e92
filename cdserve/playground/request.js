// The request's own fields: the prompt and how tokens are sampled.

import { complain } from "./form.js";

const NUMBERS = ["max_tokens", "temperature", "top_p", "seed"];
const FIELDS = ["prompt", "route", ...NUMBERS];
const ALIASES = { messages: "prompt", max_completion_tokens: "max_tokens", input: "prompt" };

const input = (name) => document.getElementById(name);
const field = (name) => document.getElementById(`${name}-field`);

/** The fields' values by name, as text; what is empty is left out. */
export function settings() {
  const values = FIELDS.map((name) => [name, input(name).value]);
  return Object.fromEntries(values.filter(([, value]) => value.trim() !== ""));
}

/** Fills the fields that have a value; opens those of rare use if it is not the usual one. */
export function fill(values) {
  for (const name of FIELDS) {
    if (name in values) input(name).value = values[name];
  }
  const { route = "chat/completions", top_p: topP = "1" } = values;
  if (route !== "chat/completions" || Number(topP) !== 1) input("more").open = true;
}

/** Whether the fields can be sent; if not, words why stand next to the first that cannot. */
export function check() {
  forgive();
  const wrong = input("prompt").value === "" ? ["prompt", "Type a prompt."] : notANumber();
  if (!wrong) return true;
  complain(field(wrong[0]), wrong[1]);
  input(wrong[0]).focus();
  return false;
}

/** The body of a streamed request; a seed is drawn if there is none. */
export function body(values, seed) {
  const { prompt, route } = values;
  const given = NUMBERS.filter((name) => name in values);
  return {
    ...(route === "completions" ? { prompt } : { messages: [{ role: "user", content: prompt }] }),
    ...Object.fromEntries(given.map((name) => [name, Number(values[name])])),
    seed,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

/** Puts an error's words next to the field it names; false if it is none of these. */
export function complainOf(param, message) {
  const [first] = param.split(/[.[]/);
  const name = ALIASES[first] ?? first;
  if (!FIELDS.includes(name)) return false;
  complain(field(name), message);
  if (field(name).closest("#more")) input("more").open = true;
  return true;
}

/** Takes all words of errors away. */
export function forgive() {
  for (const name of FIELDS) complain(field(name), null);
}

function notANumber() {
  const name = NUMBERS.find((one) => !Number.isFinite(Number(input(one).value)));
  return name && [name, `${input(name).value} is not a number.`];
}
