// What a node says about its run, as text to read and to copy.

import { holdNode, make } from "./page.js";
import { Part } from "./part.js";

const STYLE = `
  pre {
    box-sizing: border-box;
    flex: 1 1 0;
    min-height: 0;
    margin: 0;
    padding: 6px 8px;
    overflow: auto;
    border-radius: 6px;
    background: var(--well);
    font: inherit;
    white-space: pre-wrap;
    user-select: text;
  }
`;

/** Shows text, never markup. @extends {Part<string>} */
export class Told extends Part {
  #text;

  constructor() {
    const text = make("pre", { tabindex: 0 });
    super({ name: "guided-synthesis-told", hint: "Run the graph to read what it found", style: STYLE, height: 110 }, text);
    this.#text = text;
    this.scroll(text);
    holdNode(text);
    text.addEventListener("copy", (event) => event.stopPropagation()); // the page would copy the node
  }

  /** @param {string} text */
  fill(text) {
    this.#text.textContent = text;
  }
}
