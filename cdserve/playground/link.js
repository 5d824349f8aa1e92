// A run in the URL's fragment, which no server sees: settings by name, policies as JSON.

const SETTINGS = ["route", "prompt", "max_tokens", "temperature", "top_p", "seed"];

/**
 * The fragment of a run.
 *
 * @param run `settings` by name, and `policies`: one, or two to compare.
 */
export function fragment({ settings, policies }) {
  const given = SETTINGS.filter((name) => (settings[name] ?? "") !== "");
  const pairs = given.map((name) => [name, settings[name]]);
  const encoded = policies.map((policy, i) => ["ab"[i], JSON.stringify(policy)]);
  return `#${new URLSearchParams([...pairs, ...encoded])}`;
}

/** The run of a fragment; what it does not have is left out, and unreadable policies too. */
export function read(hash) {
  const found = new URLSearchParams(hash.replace(/^#/, ""));
  const given = SETTINGS.filter((name) => found.has(name));
  const policies = ["a", "b"].filter((name) => found.has(name)).map((name) => found.get(name));
  return {
    settings: Object.fromEntries(given.map((name) => [name, found.get(name)])),
    policies: policies.map(policy).filter((one) => one !== undefined),
  };
}

function policy(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && ["object", "string"].includes(typeof value) ? value : undefined;
  } catch {
    return undefined;
  }
}
