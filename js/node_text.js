// Puts what a node says about its run (ui.PreviewText in nodes/) below its widgets: the host's page shows it nowhere.

import { app } from "/scripts/app.js";
import { addPart } from "./node_widget.js";
import { Told } from "./told.js";

const NODES = [
  "IllusionScore",
  "ImageMetrics",
  "Invert",
  "LoadClassifier",
  "LoadTrajectory",
  "PerceptualGuidance",
  "PromptToPromptGuider",
  "SaliencyNoise",
  "SaveTrajectory",
  "Sweep",
].map((name) => `GuidedSynthesis_${name}`);

app.registerExtension({
  name: "guidedsynthesis.NodeText",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    addPart(node, new Told(), {
      name: "told",
      key: "text",
      read: (/** @type {string[]} */ texts) => texts.join("\n\n"),
      files: () => [],
    });
  },
});
