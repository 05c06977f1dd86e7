// An explorer of attention maps: a picture, the words of its prompt, and where the word that is pointed at looked.

import { holdNode, isFor, make } from "./page.js";
import { Part } from "./part.js";
import { SPACE, STYLE } from "./explorer_style.js";
import { drawFrame } from "./sheet.js";
import { KEYS, inSight, wordAfter } from "./words.js";

/**
 * What nodes/host/attention_explorer.py describes: the frames of the sheet are the maps of the words.
 * @typedef {import("/scripts/app.js").File} File
 * @typedef {import("./sheet.js").Sheet & { words: string[], sprite: File, picture: File }} Maps
 */

const LOOKS = {
  name: "guided-synthesis-explorer",
  hint: "Run the graph to see where each word looked",
  style: STYLE,
  height: 320,
};
const NONE = -1;

/**
 * The explorer of a prompt's maps.
 * @extends {Part<Maps>}
 */
export class Explorer extends Part {
  /** @type {Maps | null} */
  #maps = null;
  /** @type {HTMLImageElement | null} */
  #sheet = null;
  #looked = NONE; // the word under the pointer, or that the keys have led to
  #pinned = NONE;
  #picture;
  #heat;
  #words;

  constructor() {
    const picture = make("canvas", { class: "picture", role: "img" });
    const heat = make("canvas", { class: "heat", "aria-hidden": "true" });
    const words = make("div", { class: "words", role: "toolbar", "aria-label": "Words of the prompt" });
    super(LOOKS, make("div", { class: "stage" }, picture, heat), words);
    this.#picture = picture;
    this.#heat = heat;
    this.#words = words;
    this.#listen();
  }

  /**
   * @param {Maps} maps
   * @param {readonly HTMLImageElement[]} pictures
   */
  fill(maps, [sheet, picture]) {
    const words = this.#maps?.words;
    this.#maps = maps;
    this.#sheet = sheet;
    const size = { width: picture.naturalWidth, height: picture.naturalHeight };
    Object.assign(this.#picture, size);
    Object.assign(this.#heat, size);
    this.#picture.getContext("2d")?.drawImage(picture, 0, 0);
    if (JSON.stringify(words) !== JSON.stringify(maps.words)) this.#list(maps.words);
    this.#draw();
  }

  /** @returns {HTMLButtonElement[]} */
  get #buttons() {
    return [...this.#words.querySelectorAll("button")];
  }

  /**
   * Lay out `words`, none of them pinned. They are the user's text, never markup.
   * @param {readonly string[]} words
   */
  #list(words) {
    this.#looked = this.#pinned = NONE;
    this.#words.replaceChildren(...words.map((word) => make("button", { type: "button", tabindex: -1 }, word)));
    this.#words.scrollTop = 0;
    this.#reach(0);
  }

  /**
   * Look at a word, or at none; then the pinned one is seen.
   * @param {number} word
   */
  #look(word) {
    if (this.#looked === word) return;
    this.#looked = word;
    this.#draw();
  }

  /** @param {number} word */
  #pin(word) {
    this.#pinned = this.#pinned === word ? NONE : word;
    this.#looked = word;
    this.#draw();
  }

  #draw() {
    if (!this.#maps || !this.#sheet) return;
    const seen = this.#looked === NONE ? this.#pinned : this.#looked;
    this.element.toggleAttribute("data-word", seen !== NONE); // what goes fades out as it is
    if (seen !== NONE) drawFrame(this.#heat, this.#sheet, this.#maps, seen);
    this.#picture.setAttribute("aria-label", seen === NONE ? "The picture" : `Where ${this.#maps.words[seen]} looked`);
    this.#buttons.forEach((button, word) => {
      button.toggleAttribute("data-seen", word === seen);
      button.setAttribute("aria-pressed", String(word === this.#pinned));
    });
  }

  #listen() {
    const words = this.#words;
    const word = (/** @type {Event} */ event) =>
      event.target instanceof HTMLButtonElement ? this.#buttons.indexOf(event.target) : NONE;
    const atKeys = () => this.#buttons.findIndex((button) => button.matches(":focus-visible"));
    words.addEventListener("pointerover", (event) => word(event) !== NONE && this.#look(word(event)));
    words.addEventListener("pointerleave", () => this.#look(atKeys()));
    words.addEventListener("focusin", (event) => {
      this.#reach(word(event));
      if (atKeys() !== NONE) this.#look(word(event));
    });
    words.addEventListener("focusout", () => this.#look(NONE));
    words.addEventListener("click", (event) => word(event) !== NONE && this.#pin(word(event)));
    words.addEventListener("keydown", (event) => this.#press(event, word(event)));
    this.scroll(words);
    holdNode(words);
  }

  /**
   * Arrows go from word to word; space and enter click, which is the browser's own doing.
   * @param {KeyboardEvent} event
   * @param {number} from
   */
  #press(event, from) {
    if (from === NONE || !isFor(event, [...KEYS, " ", "Enter"]) || !KEYS.includes(event.key)) return;
    event.preventDefault();
    const buttons = this.#buttons;
    this.#lead(buttons[wordAfter(event.key, from, buttons.map((button) => button.getBoundingClientRect()))]);
  }

  /**
   * Give a word the focus, and let the words scroll to it; nothing around them may.
   * @param {HTMLButtonElement} button
   */
  #lead(button) {
    const { scrollTop, clientHeight } = this.#words;
    const top = button.offsetTop - SPACE;
    this.#words.scrollTop = inSight(scrollTop, clientHeight, top, top + button.offsetHeight + 2 * SPACE);
    button.focus({ preventScroll: true });
  }

  /**
   * Let the tabulator reach one word only: this one.
   * @param {number} word
   */
  #reach(word) {
    this.#buttons.forEach((button, i) => (button.tabIndex = i === word ? 0 : -1));
  }
}
