"""Prompt with Words: the condition that CLIP Text Encode makes, and a handle on its words."""

from __future__ import annotations

from comfy_api.latest import io

from .host.prompts import encode
from .host.schema import tolerant
from .host.sockets import PromptSocket


class PromptWords(io.ComfyNode):
    """CONDITIONING as CLIPTextEncode makes it, and PROMPT: its words and their tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_Prompt",
            display_name="Prompt with Words",
            category="guided synthesis/attention",
            description=(
                "Encodes a text exactly as CLIP Text Encode does, and also knows which tokens each of its words is, so "
                "that other nodes can tie words to regions, edit them or show where they went."
            ),
            search_aliases=["clip text encode", "prompt", "words", "tokens", "attention"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder: CLIP of SD 1.x, SD 2.x or SDXL."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "The prompt. Weights like (word:1.2) and embedding:name work as everywhere; any length works."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="What CLIP Text Encode would give: for any sampler."
                ),
                PromptSocket.Output(
                    display_name="prompt", tooltip="The words of the text, for this pack's attention nodes."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, text) -> io.NodeOutput:
        """Encode the text and look up its words."""
        return io.NodeOutput(*encode(clip, text))


NODES = [PromptWords]
