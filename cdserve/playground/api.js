// The public API: what the server can do, and answers streamed under a policy.

import { events } from "./sse.js";

/** Why a request failed, in words. `param` names the request's field, where one is at fault. */
export class ApiError extends Error {
  constructor(message, { status = null, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/**
 * The answer of `GET /v1/alignment`, the base model's id as `model`, and the page's settings:
 * `examples` and `gold`.
 */
export async function discover(key) {
  const paths = ["v1/alignment", "v1/models", "playground/settings.json"];
  const answers = await Promise.all(paths.map((path) => request(path, { key })));
  const [alignment, models, settings] = await Promise.all(answers.map((answer) => answer.json()));
  return { ...alignment, ...settings, model: models.data.find((model) => !model.parent).id };
}

/**
 * Yields `{chunk}` for each chunk of a streamed answer and `{waiting: true}` for each keep-alive.
 *
 * @param route "completions" or "chat/completions".
 * @throws ApiError, also where the stream has an error or breaks off; AbortError once aborted.
 */
export async function* stream(route, body, { key, signal }) {
  const answer = await request(`v1/${route}`, { key, signal, body });
  let done = false;
  try {
    for await (const event of events(answer.body)) {
      if (event.comment !== undefined) {
        yield { waiting: true };
      } else if (event.data === "[DONE]") {
        done = true;
      } else {
        const chunk = JSON.parse(event.data);
        if (chunk.error) throw inWords(chunk.error, null);
        yield { chunk };
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? unreachable("closed the stream", error) : error;
  }
  if (!done) throw new ApiError("The stream ended before the response was complete.");
}

/** Scores of a response, with V after each of its tokens: `POST /v1/alignment/score`. */
export async function score(body, { key }) {
  const answer = await request("v1/alignment/score", { key, body });
  return (await answer.json()).scores[0];
}

async function request(path, { key, signal = null, body = null }) {
  const headers = body === null ? {} : { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const method = body === null ? "GET" : "POST";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw error instanceof TypeError ? unreachable("cannot be reached", error) : error;
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

function unreachable(what, error) {
  return new ApiError(`The server ${what} (${error.message}).`);
}

async function refusal(answer) {
  const text = await answer.text();
  let error = text.trim() || answer.statusText;
  try {
    error = JSON.parse(text).error ?? error;
  } catch {
    // Something between here and the server answered, in a language of its own.
  }
  return inWords(error, answer.status, answer.headers.get("retry-after"));
}

const SAYS = {
  401: "Missing or invalid API key.",
  404: "Unknown route or model.",
  413: "The request is too large for the server.",
  429: "This API key is at its limit.",
  500: "The server failed.",
  503: "The server is overloaded or shutting down.",
};

/** OpenAI's error object, or a text, as an ApiError; `wait` is in seconds. */
function inWords(error, status, wait = null) {
  const { message, param = null, code } = typeof error === "string" ? { message: error } : error;
  const said = message?.replace(/ \(parameter=[^)]*\)$/, ""); // vLLM says the param twice
  const again = wait && `Try again in ${wait} s.`;
  return new ApiError([SAYS[status ?? code], said, again].filter(Boolean).join(" "), {
    status: status ?? code,
    param: param && param.replace(/^body\./, ""),
  });
}
