// Elements, and numbers as they are shown.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes and children; null and false attributes and children are left out.
 * An attribute `onclick` and its like is a listener; `value`, `checked` and `open` are properties.
 */
export function h(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** As `h`, for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (["value", "checked", "open"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

/** A score, reward or number of nats: three places, or three digits where they would say nothing. */
export function number(value) {
  if (typeof value !== "number") return "–";
  const small = value !== 0 && Math.abs(value) < 0.001;
  const text = small || Math.abs(value) >= 1e6 ? value.toExponential(2) : value.toFixed(3);
  return text.replace("-", "−");
}

/** Milliseconds, in seconds or milliseconds. */
export function duration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  if (milliseconds < 995) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 1)} s`;
}

/** "1 block", "2 blocks". */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Copies a text; false if the browser does not allow it. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
