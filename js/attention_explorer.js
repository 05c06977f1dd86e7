// Puts the explorer of attention maps into the node that shows where words looked.
// What it tells it is described in nodes/host/attention_explorer.py.

import { app } from "/scripts/app.js";
import { Explorer } from "./explorer.js";
import { addPart } from "./node_widget.js";

app.registerExtension({
  name: "guidedsynthesis.AttentionExplorer",
  nodeCreated(node) {
    if (node.comfyClass !== "GuidedSynthesis_AttentionMapView") return;
    addPart(node, new Explorer(), {
      name: "attention_explorer",
      key: "guided_synthesis_attention",
      read: (/** @type {import("./explorer.js").Maps[]} */ maps) => maps[0],
      files: ({ sprite, picture }) => [sprite, picture],
    });
  },
});
