// Puts a part of the page below the widgets of a node, and gives it what the node's runs tell.

import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

/**
 * @typedef {import("/scripts/app.js").GraphNode} GraphNode
 * @typedef {import("/scripts/app.js").File} File
 * @typedef {import("/scripts/app.js").Outputs} Outputs
 */

const MARGIN = 20; // px that the classic renderer keeps free above and below together
const WIDTH = 280; // px of a node with a part, at least

/**
 * Put `part` on `node`. It shows what `read` makes of what is found under `key` in the output of the node: one entry
 * for each time that it ran, more than one behind a list. `files` of that are its pictures.
 * @template Entry
 * @template Content
 * @param {GraphNode} node
 * @param {import("./part.js").Part<Content>} part
 * @param {{ name: string, key: string, read: (entries: Entry[]) => Content, files: (content: Content) => File[] }} about
 *   `name`: of the widget
 */
export function addPart(node, part, { name, key, read, files }) {
  const show = async (/** @type {Outputs | undefined} */ output) => {
    const entries = /** @type {Entry[] | undefined} */ (output?.[key]);
    if (!entries?.length) return;
    const content = read(entries);
    if (await part.show(content, files(content).map(address))) fit(node);
  };
  const widget = node.addDOMWidget(name, `GUIDED_SYNTHESIS_${name.toUpperCase()}`, part.element, {
    serialize: false, // not in what is run ...
    hideOnZoom: false,
    getMinHeight: () => MARGIN + part.height,
  });
  widget.serialize = false; // ... nor in what is saved
  part.ask = () => show(kept(node));
  part.element.addEventListener("wheel", passOnWheel, { passive: false });
  after(node, "onExecuted", show);
  after(node, "onRemoved", () => part.dispose());
  fit(node);
}

/** @param {File} file */
function address(file) {
  return api.apiURL(`/view?${new URLSearchParams({ ...file })}`);
}

/**
 * Have `callback` run after what `node` already does on an occasion.
 * @param {GraphNode} node
 * @param {"onExecuted" | "onRemoved"} occasion
 * @param {(output?: Outputs) => void} callback
 */
function after(node, occasion, callback) {
  const before = node[occasion];
  node[occasion] = function (...details) {
    const result = before?.apply(this, details);
    callback(...details);
    return result;
  };
}

/**
 * Give `node` room for what it shows, and leave it larger if it is.
 * @param {GraphNode} node
 */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas(true, true);
}

/**
 * The wheel moves the graph here too.
 * @param {WheelEvent} event
 */
function passOnWheel(event) {
  event.preventDefault();
  event.stopPropagation();
  app.canvas.canvas.dispatchEvent(new WheelEvent(event.type, event));
}

/**
 * Return what the host keeps of the last run of `node`: it forgets it with the page, but not with the tab.
 * @param {GraphNode} node
 */
function kept(node) {
  const inside = node.graph && node.graph !== node.graph.rootGraph; // a subgraph, whose nodes have a longer name
  return app.nodeOutputs?.[inside ? `${node.graph?.id}:${node.id}` : node.id];
}
