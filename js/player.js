// A player of a picture's views: the picture, a play button, a slider, and the name of the reading that is seen.

import { duration, nearestStop, schedule, shotAt } from "./film.js";
import { holdNode, isFor, make } from "./page.js";
import { Part } from "./part.js";
import { parts } from "./player_parts.js";
import { STYLE } from "./player_style.js";
import { drawFrame } from "./sheet.js";

/**
 * What nodes/host/view_player.py describes.
 * @typedef {import("./sheet.js").Sheet & { stops: number[], labels: string[], sprite: import("/scripts/app.js").File }} Film
 */

const LOOKS = {
  name: "guided-synthesis-player",
  hint: "Run the graph to play the views",
  style: STYLE,
  height: 300,
};
const STILL = "(prefers-reduced-motion: reduce)"; // the user wants a page on which nothing moves by itself
const KEYS = [" ", "Home", "End", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const ACTIONS = { play: "Play the views", pause: "Pause", next: "Next reading" };

/**
 * The player of a film.
 * @extends {Part<Film>}
 */
export class Player extends Part {
  /** @type {Film | null} */
  #film = null;
  /** @type {HTMLImageElement | null} */
  #sheet = null;
  /** @type {import("./film.js").Shot[]} */
  #shots = [];
  #time = 0; // ms since the start of the schedule
  #now = 0; // ms, on the clock of the page
  #tick = 0; // the animation frame that is waited for; 0: at rest
  #steps = 0; // of the slider
  #still = matchMedia(STILL);
  #stillChanged = () => this.rest();
  #parts;

  constructor() {
    const { made, ...changing } = parts();
    super(LOOKS, ...made);
    this.#parts = changing;
    this.#listen();
  }

  get playing() {
    return this.#tick !== 0;
  }

  play() {
    if (this.playing || !this.#film || this.#still.matches || this.#film.count < 2) return;
    const shot = shotAt(this.#shots, this.#time);
    if (this.#film.stops.includes(shot.frame)) this.#time = shot.to; // it has been looked at
    this.#now = performance.now();
    this.#tick = requestAnimationFrame((now) => this.#advance(now));
    this.#draw();
  }

  rest() {
    cancelAnimationFrame(this.#tick);
    this.#tick = 0;
    this.#draw();
  }

  dispose() {
    super.dispose();
    this.#still.removeEventListener("change", this.#stillChanged);
  }

  /**
   * @param {Film} film
   * @param {readonly HTMLImageElement[]} pictures
   */
  fill(film, [sheet]) {
    this.#film = film;
    this.#sheet = sheet;
    this.#steps = 0;
    this.#shots = schedule(film.count, film.stops);
    this.#time = 0;
    Object.assign(this.#parts.picture, { width: film.width, height: film.height });
    this.#draw();
  }

  /** @param {number} now */
  #advance(now) {
    const before = this.#frame();
    this.#time = (this.#time + Math.max(0, now - this.#now)) % duration(this.#shots);
    this.#now = now;
    if (this.#frame() !== before) this.#draw();
    this.#tick = requestAnimationFrame((later) => this.#advance(later));
  }

  /**
   * Go to `frame`, and stay there.
   * @param {number} frame
   */
  #seek(frame) {
    this.#time = this.#shots[frame].from; // the way there comes first in the schedule
    this.rest();
  }

  #toggle() {
    if (this.#still.matches) this.#next();
    else if (this.playing) this.rest();
    else this.play();
  }

  #next() {
    if (!this.#film) return;
    const { stops } = this.#film;
    this.#seek(stops[(nearestStop(stops, this.#frame()) + 1) % stops.length]);
  }

  #slide() {
    if (!this.#film) return;
    const value = Number(this.#parts.slider.value);
    this.#seek(this.#still.matches ? this.#film.stops[value] : value);
  }

  #frame() {
    return shotAt(this.#shots, this.#time).frame;
  }

  #draw() {
    if (!this.#film || !this.#sheet) return;
    const { count, stops, labels } = this.#film;
    const frame = this.#frame();
    const stop = nearestStop(stops, frame);
    drawFrame(this.#parts.picture, this.#sheet, this.#film, frame);
    this.#name(labels[stop], stops[stop] === frame);
    if (this.#still.matches) {
      this.#divide([...stops.keys()], stops.length);
      this.#parts.slider.value = String(stop);
      this.#dress("next");
    } else {
      this.#divide(stops, count);
      this.#parts.slider.value = String(frame);
      this.#dress(this.playing ? "pause" : "play");
    }
  }

  /**
   * Let the slider have `steps` steps, and marks at some of them.
   * @param {readonly number[]} marked
   * @param {number} steps
   */
  #divide(marked, steps) {
    if (this.#steps === steps) return;
    this.#steps = steps;
    const { slider, button, marks } = this.#parts;
    slider.max = String(steps - 1);
    slider.disabled = button.disabled = steps < 2;
    const far = Math.max(1, steps - 1);
    marks.replaceChildren(...marked.map((step) => make("i", { style: `left: ${(100 * step) / far}%` })));
  }

  /**
   * Say what is seen; on the way to it, more quietly. Titles are the user's text, never markup.
   * @param {string} title
   * @param {boolean} arrived
   */
  #name(title, arrived) {
    const { label, slider, picture } = this.#parts;
    label.textContent = label.title = title;
    label.toggleAttribute("data-arrived", arrived);
    slider.setAttribute("aria-valuetext", title || `frame ${this.#frame()}`);
    picture.setAttribute("aria-label", title || "The picture as it is");
  }

  /** @param {keyof typeof ACTIONS} action */
  #dress(action) {
    const { button } = this.#parts;
    if (button.dataset.action === action) return;
    button.dataset.action = action;
    button.title = ACTIONS[action];
    button.setAttribute("aria-label", ACTIONS[action]);
  }

  #listen() {
    const { picture, button, slider } = this.#parts;
    picture.addEventListener("pointerenter", () => this.play());
    picture.addEventListener("pointerleave", () => this.rest());
    button.addEventListener("click", () => this.#toggle());
    slider.addEventListener("input", () => this.#slide());
    this.element.addEventListener("keydown", (event) => this.#press(event));
    this.#still.addEventListener("change", this.#stillChanged);
    holdNode(button);
    holdNode(slider);
  }

  /**
   * The browser moves the slider and clicks the button.
   * @param {KeyboardEvent} event
   */
  #press(event) {
    if (!isFor(event, KEYS) || event.key !== " " || event.composedPath()[0] !== this.#parts.slider) return;
    event.preventDefault();
    this.#toggle();
  }
}
