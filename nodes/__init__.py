"""The nodes of the pack. A node whose host symbols are missing is left out, with one sentence in the host's log."""

from __future__ import annotations

import importlib
import logging

from comfy_api.latest import ComfyExtension, io

from .host.symbols import missing_symbols

MODULES = (
    "painting_guide",
    "gradop",
    "painting_function",
    "painting_distance",
    "low_pass_guide",
    "loopback",
    "prompt",
    "attention_regions",
    "attention_maps",
    "prompt_to_prompt",
    "edit_direction",
    "cross_attention_guidance",
    "inversion",
    "null_text",
    "trajectory",
    "perceptual_guidance",
    "text_guidance",
    "composition",
    "repaint",
    "image_metrics",
    "sweep",
    "anagram",
    "view_pictures",
    "illusion_score",
    "classifier",
    "saliency_noise",
    "transform_noise",
)


def available_nodes(modules: tuple[str, ...] = MODULES) -> list[type[io.ComfyNode]]:
    """Return the node classes of `modules` that this host can serve; name what the others lack."""
    nodes: list[type[io.ComfyNode]] = []
    for module in modules:
        if missing := missing_symbols(module):
            logging.warning(
                "Guided Synthesis: the nodes of nodes/%s.py are switched off because this ComfyUI lacks %s; "
                "update ComfyUI to 0.3.75 or newer.",
                module,
                ", ".join(missing),
            )
            continue
        nodes += importlib.import_module(f".{module}", __name__).NODES
    return nodes


class GuidedSynthesis(ComfyExtension):
    """The extension that the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes that work on this host."""
        return available_nodes()
