// Elements and text. Data reaches the page as text nodes and attributes alone, never as markup.

const SVG = new Set(["svg", "g", "rect", "line", "circle", "path", "polyline", "text"]);
const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/** Makes an element; attributes that are null or false are left out, children may be nested lists. */
export function el(tag, attributes = {}, ...children) {
  const made = SVG.has(tag) ? document.createElementNS(SVG_NAMESPACE, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...nodes(children));
  return made;
}

/**
 * Makes the children of a parent equal to those that are given, and leaves alone what is equal already: focus,
 * selection and scroll positions stay. Children with a `data-key` are recognised by it when others come or go.
 */
export function render(parent, ...children) {
  patch(parent, nodes(children));
}

/** Sets the text of an element only if it changed, so that a screen reader does not hear it twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function nodes(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}

function keyOf(node) {
  return node instanceof Element ? node.getAttribute("data-key") : null;
}

function patch(parent, wanted) {
  const keys = new Set(wanted.map(keyOf));
  for (const old of [...parent.childNodes]) if (keyOf(old) !== null && !keys.has(keyOf(old))) old.remove();
  wanted.forEach((node, index) => {
    const old = parent.childNodes[index] ?? null;
    const same = old && keyOf(old) === keyOf(node) ? old : withKey(parent, index, keyOf(node));
    if (!same) parent.insertBefore(node, old);
    else {
      if (same !== old) parent.insertBefore(same, old);
      if (same.nodeName !== node.nodeName) same.replaceWith(node);
      else patchOne(same, node);
    }
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function withKey(parent, from, key) {
  if (key === null) return null;
  return [...parent.childNodes].slice(from).find((node) => keyOf(node) === key) ?? null;
}

function patchOne(old, node) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (old.data !== node.data) old.data = node.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !node.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of node.attributes) {
    // A person opens and closes what is there, not the data.
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  patch(old, [...node.childNodes]);
}

/**
 * Makes a table in a box that scrolls by itself where it is too wide.
 *
 * `columns` are {title, cell(row), number, wraps, head}: the one with `head` names the row, those with `wraps` may take
 * several lines. `key(row)` identifies a row.
 */
export function table(label, columns, rows, key) {
  const look = (column) => (column.number ? "number" : column.wraps ? "wraps" : null);
  const cell = (column, row) =>
    el(column.head ? "th" : "td", { scope: column.head ? "row" : null, class: look(column) }, column.cell(row));
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, columns.map((column) =>
        el("th", { scope: "col", class: look(column) }, column.title)))),
      el("tbody", {}, rows.map((row) =>
        el("tr", { "data-key": key(row) }, columns.map((column) => cell(column, row))))),
    ),
  );
}

/** A mark whose shape and word say what its colour says: "well", "warning", "bad", "unknown" or "quiet". */
export function mark(level, word) {
  const paths = {
    well: "M2 8.5 6.5 13 14 4",
    warning: "M8 2 15 14H1Z",
    bad: "M5 1h6l4 4v6l-4 4H5l-4-4V5Z",
    unknown: "M8 1.5a6.5 6.5 0 1 0 .01 0Z",
    quiet: "M3 8h10",
  };
  return el(
    "span",
    { class: `mark ${level}` },
    el("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, el("path", { d: paths[level] ?? paths.unknown })),
    word,
  );
}
