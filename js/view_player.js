// Puts the player of a picture's views into the nodes that show how a picture reads.
// What they tell it is described in nodes/host/view_player.py.

import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { Player } from "./player.js";
import { FILM_HEIGHT, HINT_HEIGHT } from "./player_style.js";

const NODES = ["GuidedSynthesis_ApplyView", "GuidedSynthesis_ViewAnimation"];
const KEY = "guided_synthesis_views";
const MARGIN = 20; // px that the classic renderer keeps free above and below together
const WIDTH = 280; // px of a node with a player, at least

/** Have `callback` run after what `node` already does on an occasion. */
function after(node, occasion, callback) {
  const before = node[occasion];
  node[occasion] = function (...details) {
    const result = before?.apply(this, details);
    callback(...details);
    return result;
  };
}

/** Give `node` room for what it shows, and leave it larger if it is. */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas(true, true);
}

/** The wheel moves the graph here too. */
function passOnWheel(event) {
  event.preventDefault();
  event.stopPropagation();
  app.canvas.canvas.dispatchEvent(new WheelEvent(event.type, event));
}

/** Return what the host keeps of the last run of `node`: it forgets it with the page, but not with the tab. */
function kept(node) {
  const inside = node.graph && node.graph !== node.graph.rootGraph; // a subgraph, whose nodes have a longer name
  return app.nodeOutputs?.[inside ? `${node.graph.id}:${node.id}` : node.id];
}

function addPlayer(node) {
  const player = new Player(() => show(kept(node)));
  const show = async (output) => {
    const film = output?.[KEY]?.[0];
    if (film && (await player.show(film, api.apiURL(`/view?${new URLSearchParams(film.sprite)}`)))) fit(node);
  };
  const widget = node.addDOMWidget("view_player", "GUIDED_SYNTHESIS_VIEW_PLAYER", player.element, {
    serialize: false, // not in what is run ...
    hideOnZoom: false,
    getMinHeight: () => MARGIN + (player.empty ? HINT_HEIGHT : FILM_HEIGHT),
  });
  widget.serialize = false; // ... nor in what is saved
  player.element.addEventListener("wheel", passOnWheel, { passive: false });
  after(node, "onExecuted", show);
  after(node, "onRemoved", () => player.dispose());
  fit(node);
}

app.registerExtension({
  name: "GuidedSynthesis.ViewPlayer",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) addPlayer(node);
  },
});
