// The parts of the player, put together: what is where on it.

import { make } from "./page.js";

/** Return the parts that change, and what the player is `made` of, from top to bottom. */
export function parts() {
  const picture = make("canvas", { class: "picture", role: "img" });
  const label = make("div", { class: "label" });
  const button = make("button", { type: "button" });
  const marks = make("div", { class: "marks" });
  const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "Frame" });
  const track = make("div", { class: "track" }, marks, slider);
  const made = [
    make("div", { class: "stage" }, picture),
    label,
    make("div", { class: "controls" }, button, track),
  ];
  return { picture, label, button, marks, slider, made };
}
