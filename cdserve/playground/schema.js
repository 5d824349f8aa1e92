// JSON schemas as pydantic writes them: references, unions, what tells their branches apart.

/** The schema that `$ref` names, or the schema itself. */
export function resolved(schema, root) {
  return schema.$ref ? root.$defs[schema.$ref.split("/").pop()] : schema;
}

/** What a value may be, each as a schema of its own; null, which stands for absent, left out. */
export function branches(schema, root) {
  const union = schema.anyOf ?? schema.oneOf;
  if (!union) return [resolved(schema, root)];
  return union
    .flatMap((branch) => branches(branch, root))
    .flatMap((branch) => branch.enum?.map((value) => ({ ...branch, const: value })) ?? [branch])
    .filter(({ type }) => type !== "null");
}

/** A branch's name: its constant, that of its `method` or `kind`, or its only property. */
export function nameOf(branch) {
  if (branch.const !== undefined) return String(branch.const);
  const properties = Object.entries(branch.properties ?? {});
  const constant = properties.find(([, property]) => property.const !== undefined);
  if (constant) return constant[1].const;
  return properties.length === 1 ? properties[0][0] : (branch.title ?? branch.type);
}

/** Which branch a value is of; undefined if of none. */
export function branchOf(options, value) {
  return options.find((branch) => {
    if (branch.const !== undefined) return branch.const === value;
    if (typeOf(value) !== "object") return accepts(branch.type, value);
    if (branch.type !== "object") return false;
    const constants = Object.entries(branch.properties ?? {}).filter(([, p]) => p.const);
    if (constants.length > 0) return constants.every(([key, p]) => value[key] === p.const);
    return (branch.required ?? []).every((key) => key in value);
  });
}

/** What required fields begin with, by their names; other numbers with 1. */
const FIRST = {
  n: 8,
  k: 4,
  m: 32,
  mu: 3,
  max_draws: 8,
  beta: 0.5,
  softmax: 0.2,
  gain_per_token: 0.001,
  delta: 0.01,
  extract: "last_number",
};

/** A value to begin with: constants, numbers, and objects with what they require. */
export function initial(schema, root, key = null) {
  const branch = branches(schema, root)[0];
  if (branch.const !== undefined) return branch.const;
  if (["number", "integer"].includes(branch.type)) return FIRST[key] ?? 1;
  if (branch.type === "string") return FIRST[key];
  if (branch.type !== "object") return undefined;
  const values = {};
  for (const name of branch.required ?? []) {
    const value = initial(branch.properties[name], root, name);
    if (value !== undefined) values[name] = value;
  }
  return values;
}

/** What numbers are accepted, in words; null if all are. */
export function range({ minimum, exclusiveMinimum, maximum, exclusiveMaximum }) {
  const low = minimum !== undefined ? `≥ ${minimum}` : over(">", exclusiveMinimum);
  const high = maximum !== undefined ? `≤ ${compact(maximum)}` : over("<", exclusiveMaximum);
  return [low, high].filter(Boolean).join(", ") || null;
}

function over(sign, bound) {
  return bound === undefined ? null : `${sign} ${bound}`;
}

function compact(value) {
  return value >= 1e4 ? value.toExponential().replace("e+", "e") : String(value);
}

function accepts(type, value) {
  const found = typeOf(value);
  return found === type || (type === "integer" && found === "number" && Number.isInteger(value));
}

function typeOf(value) {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}
