// A request as code that sends it: curl, and Python with OpenAI's client.

const KEY = "CDSERVE_API_KEY";

/**
 * A shell command.
 *
 * @param request `base`: the URL that ends in /v1; `route`; `body`; `keyed`: whether a key is sent.
 */
export function curl({ base, route, body, keyed }) {
  const lines = [`curl ${base}/${route}`, `-H 'content-type: application/json'`];
  if (keyed) lines.push(`-H "authorization: Bearer $${KEY}"`);
  lines.push(`-d '${JSON.stringify(body, null, 2).replaceAll("'", `'\\''`)}'`);
  return lines.join(" \\\n  ");
}

/** A Python script; as `curl`. */
export function python({ base, route, body, keyed }) {
  const { alignment, ...fields } = body;
  const named = Object.entries(fields).map(([name, value]) => `    ${name}=${literal(value)},`);
  const chat = route === "chat/completions";
  const plain = alignment.method === "none";
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base)}, api_key=${keyed ? `os.environ["${KEY}"]` : '"-"'})`,
    `answer = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...named,
    `    extra_body=${literal({ alignment })},`,
    ")",
    `print(answer.choices[0].${chat ? "message.content" : "text"})`,
    ...(plain ? [] : [`print(answer.alignment["score"], answer.alignment["kl"])`]),
    "",
  ].join("\n");
}

function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const items = Object.entries(value).map(([key, item]) => `${literal(key)}: ${literal(item)}`);
  return `{${items.join(", ")}}`;
}
