// Small things that every part of the pack in the page needs.

/**
 * Return a new element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...(Node | string)} children strings become text, never markup
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * Tell whether a key was pressed that a control has a use for; then the page around does not get it.
 * @param {KeyboardEvent} event
 * @param {readonly string[]} keys
 */
export function isFor(event, keys) {
  if (event.ctrlKey || event.metaKey || event.altKey || !keys.includes(event.key)) return false;
  event.stopPropagation();
  return true;
}

/**
 * Have the node stay where it is while `control` is used.
 * @param {HTMLElement} control
 */
export function holdNode(control) {
  control.addEventListener("pointerdown", (event) => event.stopPropagation());
}
