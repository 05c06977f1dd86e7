// A player of a picture's views: the picture, a play button, a slider, and the name of the reading that is seen.
// It knows the page, but nothing of ComfyUI.

import { corner, nearestStop, schedule, shotAt } from "./film.js";
import { make, parts } from "./player_parts.js";

const HINT = "Run the graph to play the views";
const GONE = "The host no longer has the frames: run the graph again";
const REST = "(prefers-reduced-motion: reduce)"; // the user wants a page on which nothing moves by itself

/**
 * The player. `element` goes into the page; `show` gives it a film; `dispose` ends what it has running.
 * Whenever it comes into sight without a film it calls `ask`: perhaps there is one by now.
 */
export class Player {
  #film = null; // what nodes/host/view_player.py describes, and its `sheet`, an image
  #shots = [];
  #time = 0; // ms since the start of the schedule
  #now = 0; // ms, on the clock of the page
  #tick = 0; // the animation frame that is waited for; 0: at rest
  #scale = null; // how many steps the slider has
  #loading = null;

  constructor(ask = () => {}) {
    Object.assign(this, parts()); // element, hint, picture, label, button, marks, slider
    this.rest = matchMedia(REST);
    this.changed = () => this.pause();
    this.#listen();
    this.#watch(ask);
    this.#say(HINT);
  }

  /** Tell whether there is nothing to play. */
  get empty() {
    return !this.#film;
  }

  get playing() {
    return this.#tick !== 0;
  }

  /** Show `film`, whose sheet of frames is at `url`; resolves to whether there is something to see. */
  async show(film, url) {
    const sheet = new Image();
    this.#loading = sheet;
    sheet.src = url;
    const loaded = await sheet.decode().then(() => true, () => false);
    if (this.#loading !== sheet) return false; // a newer film came, or the node went
    this.pause();
    this.#film = loaded ? { ...film, sheet } : null;
    if (loaded) this.#begin();
    else this.#say(GONE);
    return loaded;
  }

  play() {
    if (this.playing || this.empty || this.rest.matches || this.#film.count < 2) return;
    const shot = shotAt(this.#shots, this.#time);
    if (this.#film.stops.includes(shot.frame)) this.#time = shot.to; // it has been looked at
    this.#now = performance.now();
    this.#tick = requestAnimationFrame((now) => this.#advance(now));
    this.#draw();
  }

  pause() {
    cancelAnimationFrame(this.#tick);
    this.#tick = 0;
    if (!this.empty) this.#draw();
  }

  dispose() {
    this.#loading = null;
    this.pause();
    this.seen.disconnect();
    this.rest.removeEventListener("change", this.changed);
  }

  #begin() {
    const { count, stops, width, height } = this.#film;
    this.#scale = null;
    this.#shots = schedule(count, stops);
    this.#time = 0;
    this.hint.textContent = "";
    this.element.toggleAttribute("data-film", true);
    Object.assign(this.picture, { width, height });
    this.#draw();
  }

  #advance(now) {
    const before = this.#frame();
    this.#time = (this.#time + Math.max(0, now - this.#now)) % this.#shots.at(-1).to;
    this.#now = now;
    if (this.#frame() !== before) this.#draw();
    this.#tick = requestAnimationFrame((later) => this.#advance(later));
  }

  /** Go to `frame`, and stay there. */
  #seek(frame) {
    this.#time = this.#shots[frame].from; // the way there comes first in the schedule
    this.pause();
  }

  #toggle() {
    if (this.empty) return;
    if (this.rest.matches) this.#next();
    else if (this.playing) this.pause();
    else this.play();
  }

  #next() {
    const { stops } = this.#film;
    this.#seek(stops[(nearestStop(stops, this.#frame()) + 1) % stops.length]);
  }

  #slide() {
    if (this.empty) return;
    const value = Number(this.slider.value);
    this.#seek(this.rest.matches ? this.#film.stops[value] : value);
  }

  #frame() {
    return shotAt(this.#shots, this.#time).frame;
  }

  #draw() {
    const { sheet, count, width, height, stops, labels } = this.#film;
    const frame = this.#frame();
    const stop = nearestStop(stops, frame);
    this.picture.getContext("2d").drawImage(sheet, ...corner(this.#film, frame), width, height, 0, 0, width, height);
    this.#name(labels[stop], stops[stop] === frame);
    if (this.rest.matches) {
      this.#divide([...stops.keys()], stops.length);
      this.slider.value = stop;
      this.#dress("next");
    } else {
      this.#divide(stops, count);
      this.slider.value = frame;
      this.#dress(this.playing ? "pause" : "play");
    }
  }

  /** Let the slider have `steps` steps, and marks at some of them. */
  #divide(marked, steps) {
    if (this.#scale === steps) return;
    this.#scale = steps;
    this.slider.max = steps - 1;
    this.slider.disabled = this.button.disabled = steps < 2;
    const far = Math.max(1, steps - 1);
    this.marks.replaceChildren(...marked.map((step) => make("i", { style: `left: ${(100 * step) / far}%` })));
  }

  /** Say what is seen; on the way to it, more quietly. Titles are the user's text, never markup. */
  #name(title, arrived) {
    this.label.textContent = this.label.title = title;
    this.label.toggleAttribute("data-arrived", arrived);
    this.slider.setAttribute("aria-valuetext", title || `frame ${this.#frame()}`);
    this.picture.setAttribute("aria-label", title || "The picture as it is");
  }

  #dress(action) {
    if (this.button.dataset.action === action) return;
    this.button.dataset.action = action;
    const name = { play: "Play the views", pause: "Pause", next: "Next reading" }[action];
    this.button.title = name;
    this.button.setAttribute("aria-label", name);
  }

  #say(text) {
    this.element.removeAttribute("data-film");
    this.hint.textContent = text;
  }

  #listen() {
    this.picture.addEventListener("pointerenter", () => this.play());
    this.picture.addEventListener("pointerleave", () => this.pause());
    this.button.addEventListener("click", () => this.#toggle());
    this.slider.addEventListener("input", () => this.#slide());
    this.element.addEventListener("keydown", (event) => this.#press(event));
    for (const control of [this.button, this.slider])
      control.addEventListener("pointerdown", (event) => event.stopPropagation()); // it does not move the node
  }

  #watch(ask) {
    this.rest.addEventListener("change", this.changed);
    this.seen = new IntersectionObserver((entries) => {
      if (!entries.at(-1).isIntersecting) this.pause();
      else if (this.empty) ask();
    });
    this.seen.observe(this.element);
  }

  /** The browser moves the slider and clicks the button; the page around must not take these keys for its own. */
  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (![" ", "Home", "End", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.stopPropagation();
    if (event.key !== " " || event.composedPath()[0] !== this.slider) return;
    event.preventDefault();
    this.#toggle();
  }
}
