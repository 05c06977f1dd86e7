// The parts of the player, put together: what is where on it.

import { STYLE } from "./player_style.js";

export function make(tag, attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Return a player at rest, `element`, and the parts of it that change. */
export function parts() {
  const changing = {
    hint: make("p", { class: "hint", role: "status" }),
    picture: make("canvas", { class: "picture", role: "img" }),
    label: make("div", { class: "label" }),
    button: make("button", { type: "button" }),
    marks: make("div", { class: "marks" }),
    slider: make("input", { type: "range", min: 0, step: 1, "aria-label": "Frame" }),
  };
  const { hint, picture, label, button, marks, slider } = changing;
  const controls = within("controls", button, within("track", marks, slider));
  const style = make("style");
  style.textContent = STYLE;
  const element = make("div", { class: "guided-synthesis-player" });
  element.attachShadow({ mode: "open" }).append(style, hint, within("stage", picture), label, controls);
  return { element, ...changing };
}

function within(name, ...children) {
  const box = make("div", { class: name });
  box.append(...children);
  return box;
}
