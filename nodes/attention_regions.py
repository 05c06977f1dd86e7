"""Words tied to painted regions: Attention Region, Painted Regions, Cross-Attention Injector.

The formula is GradOP's (arXiv 2211.17084), see attention/regions.py.
"""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..attention.colours import colour_regions, parsed_table
from ..attention.maps import SCALES, STAGES
from ..attention.regions import Injection, Kappa, Region
from .host import checks
from .host.attention_hook import check_unet, edit_attention
from .host.schema import tolerant
from .host.sockets import PromptSocket, RegionsSocket
from .host.widgets import PERCENT, scale_switches, scales_on, switch

CATEGORY = "guided synthesis/attention"
PARTS = dict(zip(STAGES, ("down blocks", "middle block", "up blocks"), strict=True))
CHAIN = "The regions so far; leave it unconnected on the first node of the chain."
PROMPT = "The prompt output of the Prompt with Words node that also makes the positive conditioning."
WEIGHT = "How loud the words are within their regions: 1 as they are, more is stronger, 0 silences them."


class AttentionRegion(io.ComfyNode):
    """Adds one region: words of a prompt and the mask where they belong."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_AttentionRegion",
            display_name="Attention Region",
            category=CATEGORY,
            description=(
                "Ties words of the prompt to a painted region. Chain one node for each object, then connect the last "
                "to the Cross-Attention Injector."
            ),
            search_aliases=[
                "regional prompt",
                "region",
                "attention couple",
                "mask words",
                "paint with words",
            ],
            inputs=[
                PromptSocket.Input("prompt", tooltip=PROMPT),
                io.String.Input(
                    "words",
                    default="",
                    tooltip=(
                        "A word or phrase of the prompt, e.g. red fox. Several are separated by commas; fox#2 is the "
                        "second fox only."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "Where the words belong (white), at any size; grey counts in part. An empty mask does nothing."
                    ),
                ),
                io.Float.Input("weight", default=2.5, min=0.0, max=10.0, step=0.05, tooltip=WEIGHT),
                RegionsSocket.Input("regions", optional=True, tooltip=CHAIN),
            ],
            outputs=[
                RegionsSocket.Output(display_name="regions", tooltip="The regions so far and this one.")
            ],
        )

    @classmethod
    def execute(cls, prompt, words, mask, weight, regions=()) -> io.NodeOutput:
        """Find the words and add the region."""
        where = mask.reshape(-1, 1, *mask.shape[-2:]).float().clamp(0, 1)
        return io.NodeOutput((*(regions or ()), Region(prompt, prompt.find_all(words), where, weight)))


class PaintedRegions(io.ComfyNode):
    """Adds a region for each colour of a picture that a table gives words to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_PaintedRegions",
            display_name="Painted Regions",
            category=CATEGORY,
            description=(
                "Makes regions out of one painted picture: paint a blob for each object in a colour of its own and say "
                "which words of the prompt each colour stands for."
            ),
            search_aliases=["paint with words", "colour map", "segmentation", "regional prompt", "ediff-i"],
            inputs=[
                PromptSocket.Input("prompt", tooltip=PROMPT),
                io.Image.Input(
                    "painting",
                    tooltip="The painted blobs, from any image file or the Painter node of newer ComfyUI versions.",
                ),
                io.String.Input(
                    "table",
                    multiline=True,
                    default="red: fox\nblue: lake",
                    tooltip=(
                        "One line for each colour: its name or #rrggbb, a colon, and words of the prompt. No words "
                        "after the colon leave that colour free."
                    ),
                ),
                io.Float.Input(
                    "tolerance",
                    default=30.0,
                    min=0.0,
                    max=150.0,
                    step=1.0,
                    tooltip="How far a painted colour may be from the table's (CIE Lab distance; 2 is barely visible).",
                ),
                io.Float.Input("weight", default=2.5, min=0.0, max=10.0, step=0.05, tooltip=WEIGHT),
                RegionsSocket.Input("regions", optional=True, tooltip=CHAIN),
            ],
            outputs=[
                RegionsSocket.Output(
                    display_name="regions", tooltip="The regions so far and the painted ones."
                )
            ],
        )

    @classmethod
    def execute(cls, prompt, painting, table, tolerance, weight, regions=()) -> io.NodeOutput:
        """Match the colours, say which are left over, and add the regions."""
        colours = parsed_table(table)
        found, sentence = colour_regions(checks.picture(painting, "painting"), colours, tolerance)
        if sentence:
            logging.info("Guided Synthesis: %s", sentence)
        added = [
            Region(prompt, prompt.find_all(words), mask, weight)
            for (_, words), mask in zip(colours, found, strict=True)
            if words
        ]
        return io.NodeOutput((*(regions or ()), *added))


class CrossAttentionInjector(io.ComfyNode):
    """MODEL patch: the attention of each region's words is pulled to its mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_CrossAttentionInjector",
            display_name="Cross-Attention Injector",
            category=CATEGORY,
            description=(
                "Puts words where you painted them: pulls the attention of each region's words to its mask while the "
                "picture takes shape. Put it between the checkpoint and any sampler."
            ),
            search_aliases=["regional prompt", "attention couple", "paint with words", "layout", "gradop"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD 1.x, SD 2.x or SDXL, with LoRAs, IPAdapter and the like."
                ),
                RegionsSocket.Input(
                    "regions", tooltip="From Attention Region (the last of the chain) or Painted Regions."
                ),
                io.Float.Input(
                    "kappa_start",
                    default=1.0,
                    tooltip="How strongly words are pulled to their regions at the start: 0 not at all, 1 entirely.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "kappa_end",
                    default=1.0,
                    tooltip="The same at end_percent; less than at the start lets go gradually.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "curve",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    tooltip="How kappa gets from start to end: 1 evenly, above 1 it falls early, below 1 late.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    tooltip="When it begins: 0 is the first sampling step.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.35,
                    tooltip="When it ends: the rest of the schedule is the model's own, for details.",
                    **PERCENT,
                ),
                *scale_switches(
                    SCALES,
                    lambda px: (
                        f"Act in layers whose tokens are {px} px wide. Each model has only some of these scales."
                    ),
                ),
                *(switch(stage, True, f"Act in the {name} of the UNet.") for stage, name in PARTS.items()),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model, for any sampler.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """Refuse a reversed range before anything runs."""
        return checks.percent_range(start_percent, end_percent) or True

    @classmethod
    def execute(
        cls, model, regions, kappa_start, kappa_end, curve, start_percent, end_percent, **layers
    ) -> io.NodeOutput:
        """Check the model and add the editor."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        check_unet(model)
        kappa = Kappa(kappa_start, kappa_end, curve, start_percent, end_percent)
        scales = scales_on(layers)
        stages = frozenset(stage for stage in STAGES if layers[stage])
        return io.NodeOutput(edit_attention(model, Injection(tuple(regions), kappa, scales, stages)))


NODES = [AttentionRegion, PaintedRegions, CrossAttentionInjector]
