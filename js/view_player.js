// Puts the player of a picture's views into the nodes that show how a picture reads.
// What they tell it is described in nodes/host/view_player.py.

import { app } from "/scripts/app.js";
import { addPart } from "./node_widget.js";
import { Player } from "./player.js";

const NODES = ["GuidedSynthesis_ApplyView", "GuidedSynthesis_ViewAnimation"];

app.registerExtension({
  name: "guidedsynthesis.ViewPlayer",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    addPart(node, new Player(), {
      name: "view_player",
      key: "guided_synthesis_views",
      read: (/** @type {import("./player.js").Film[]} */ films) => films[0],
      files: ({ sprite }) => [sprite],
    });
  },
});
