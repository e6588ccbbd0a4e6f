/* Making and changing elements. Text is only ever set as text: nothing that comes from outside is markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: `h("p", {class: "quiet", hidden: true}, "text", child)`. */
export function h(name, attributes = {}, ...children) {
  return dress(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function s(name, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set text, but only if it is another: selections and screen readers are not disturbed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const byId = (id) => document.getElementById(id);

/**
 * Make the children of *parent* those of *items*, in order; what is there already stays the same element.
 *
 * @param {(item: any) => string} key
 * @param {(item: any) => Element} make
 * @param {(element: Element, item: any) => void} update
 */
export function keyed(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = known.get(name);
    known.delete(name);
    if (!element) {
      element = make(item);
      element.dataset.key = name;
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  for (const gone of known.values()) gone.remove();
}

/** The sign of a level or a state: a shape, so that colour is never all that tells it. */
export function sign(shape) {
  const shapes = {
    well: () => [s("circle", { cx: 8, cy: 8, r: 6 }), s("path", { class: "ink", d: "M5 8.2 7.2 10.4 11 6" })],
    watch: () => [s("path", { d: "M8 1.6 14.6 8 8 14.4 1.4 8Z" }), s("path", { class: "ink", d: "M8 5v3.6M8 10.8v.2" })],
    coping: () => [s("path", { d: "M8 1.5 15 14H1Z" }), s("path", { class: "ink", d: "M8 6v4M8 12v.2" })],
    down: () => [s("path", { d: "M5 1.5h6L14.5 5v6L11 14.5H5L1.5 11V5Z" }), s("path", { class: "ink", d: "m5.6 5.6 4.8 4.8m0-4.8-4.8 4.8" })],
    info: () => [s("circle", { cx: 8, cy: 8, r: 6.2 }), s("path", { class: "ink", d: "M8 7.4V11M8 5v.2" })],
    off: () => [s("circle", { class: "ring", cx: 8, cy: 8, r: 5 })],
  };
  return s("svg", { class: `sign sign-${shape}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, ...shapes[shape]());
}
