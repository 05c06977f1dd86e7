// What a node shows below its widgets: a hint, and once there is something to see, that.
// It knows the page, but nothing of ComfyUI.

import { make } from "./page.js";
import { HINT_HEIGHT, THEME } from "./theme.js";

const GONE = "The host no longer has the pictures: run the graph again";

/**
 * A part of the page. `element` goes into the page; `show` gives it what it shows; `dispose` ends what it has running.
 * Its heirs say what to do with it.
 * @template Content
 */
export class Part {
  /** The last call of `show`; null: the part is gone. @type {symbol | null} */
  #latest = null;
  #hint = make("p", { class: "hint", role: "status" });
  #height;
  #seen;

  /** Whether there is nothing to see yet. */
  empty = true;

  /** Called whenever the part comes into sight without anything to show: perhaps there is something by now. */
  ask = () => {};

  /**
   * @param {{ name: string, hint: string, style: string, height: number }} looks `height`: px of what it shows
   * @param {...HTMLElement} children
   */
  constructor({ name, hint, style, height }, ...children) {
    this.#height = height;
    this.#hint.textContent = hint;
    this.element = make("div", { class: name });
    const shown = `:host([data-shown]) { min-height: ${height}px; }`;
    this.element.attachShadow({ mode: "open" }).append(make("style", {}, THEME, shown, style), this.#hint, ...children);
    this.#seen = new IntersectionObserver((entries) => this.#look(entries[entries.length - 1].isIntersecting));
    this.#seen.observe(this.element);
  }

  /** How many px it takes, at least. */
  get height() {
    return this.empty ? HINT_HEIGHT : this.#height;
  }

  /**
   * Show `content`, whose pictures are at `urls`; resolves to whether there is something to see.
   * @param {Content} content
   * @param {readonly string[]} urls
   */
  async show(content, urls) {
    const turn = (this.#latest = Symbol());
    const pictures = await Promise.all(urls.map(loaded)).catch(() => null);
    if (this.#latest !== turn) return false; // a newer one came, or the node went
    this.rest();
    this.empty = !pictures;
    this.#hint.textContent = pictures ? "" : GONE;
    this.element.toggleAttribute("data-shown", !this.empty);
    if (pictures) this.fill(content, pictures);
    return !this.empty;
  }

  dispose() {
    this.#latest = null;
    this.#seen.disconnect();
    this.rest();
  }

  /**
   * Show `content` now.
   * @param {Content} _content
   * @param {readonly HTMLImageElement[]} _pictures
   */
  fill(_content, _pictures) {}

  /** Stop whatever moves: nobody sees it, or it gives way to something else. */
  rest() {}

  /**
   * Have the wheel scroll `box` where there is more than it has room for; elsewhere it is the graph's.
   * @param {HTMLElement} box
   */
  scroll(box) {
    this.element.dataset.captureWheel = "true"; // Nodes 2.0 asks for this before it leaves the wheel to an element
    box.addEventListener("wheel", (event) => {
      if (box.scrollHeight > box.clientHeight && !event.ctrlKey) event.stopPropagation();
    });
  }

  /** @param {boolean} visible */
  #look(visible) {
    if (!visible) this.rest();
    else if (this.empty) this.ask();
  }
}

/** @param {string} url */
async function loaded(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  return picture;
}
