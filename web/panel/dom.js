/** Building elements. Text is only ever set as text, so nothing from a file or the server can become markup. */

const SVG = "http://www.w3.org/2000/svg";
// Set as properties, because the attribute is only their first value.
const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "indeterminate", "readOnly", "hidden", "open"]);

function apply(element, name, value) {
  if (value === undefined || value === null) return;
  if (name.startsWith("on") && typeof value === "function") {
    element.addEventListener(name.slice(2).toLowerCase(), value);
  } else if (name === "style") {
    for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
  } else if (PROPERTIES.has(name)) {
    element[name] = value;
  } else if (typeof value === "boolean" && !name.startsWith("aria-")) {
    element.toggleAttribute(name, value);
  } else {
    element.setAttribute(name, String(value));
  }
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/**
 * An element. Props: attributes, `on<Event>` listeners, `style` as an object of CSS properties ("--x" too), and the
 * properties value, checked, disabled, hidden, open. Children: nodes, texts, arrays; null, undefined, false are none.
 * @param {string} tag
 * @param {Object<string, *>|null} [props]
 * @param {...*} children
 * @returns {HTMLElement}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  append(element, children);
  // After the children, so that the value of a <select> finds its option.
  for (const [name, value] of Object.entries(props ?? {})) apply(element, name, value);
  return element;
}

/**
 * An SVG element, like `h`.
 * @param {string} tag
 * @param {Object<string, *>|null} [props]
 * @param {...*} children
 * @returns {SVGElement}
 */
export function svg(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props ?? {})) apply(element, name, value);
  return append(element, children);
}

/**
 * Replaces all children.
 * @param {Element} element
 * @param {...*} children
 */
export function clear(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

/** Sets text only where it differs, so that selections and screen readers are left alone. */
export function setText(element, text) {
  const wanted = text ?? "";
  if (element.textContent !== wanted) element.textContent = wanted;
}

/**
 * Listens, and returns the function that stops listening.
 * @returns {() => void}
 */
export function on(target, type, listener, options) {
  target.addEventListener(type, listener, options);
  return () => target.removeEventListener(type, listener, options);
}

/**
 * Makes the children of `parent` those of `items`, in order, keeping the elements of known keys (focus and scrolling
 * survive an update).
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => {root: Element, update?: (item: T) => void}} make
 */
export function keyed(parent, items, keyOf, make) {
  const known = parent.keyedRows ?? new Map();
  const rows = new Map();
  for (const item of items) {
    const key = keyOf(item);
    const row = known.get(key) ?? make(item);
    row.update?.(item);
    rows.set(key, row);
  }
  for (const [key, row] of known) if (!rows.has(key)) row.root.remove();
  let at = parent.firstElementChild;
  for (const row of rows.values()) {
    if (row.root === at) at = at.nextElementSibling;
    else parent.insertBefore(row.root, at);
  }
  parent.keyedRows = rows;
}

/**
 * Calls `run` once, `wait` milliseconds after the last call. `.cancel()` drops a waiting call, `.flush()` makes it now.
 */
export function debounce(run, wait) {
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = 0;
      run();
    }, wait);
  };
  later.cancel = () => {
    clearTimeout(timer);
    timer = 0;
  };
  later.flush = () => {
    if (timer === 0) return;
    later.cancel();
    run();
  };
  return later;
}

let lastId = 0;

/** An id that no other element of the page has. */
export function uniqueId(prefix = "sa") {
  lastId += 1;
  return `${prefix}-${lastId}`;
}
