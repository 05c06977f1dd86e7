"""Painting Function: makes a stroke painting of a photo, as the painting guide sees pictures.

The painting functions of High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084).
"""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..guidance.painting import blur_sigma
from ..guidance.painting_functions import NAMES, paint
from .host import checks
from .host.restarts import check_interrupt
from .host.schema import tolerant


class PaintingFunction(io.ComfyNode):
    """IMAGE -> IMAGE: what a person would paint of it with one brush."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_PaintingFunction",
            display_name="Painting Function (Photo to Stroke Painting)",
            category="guided synthesis/painting",
            description=(
                "Turns a photo into a painting of wide strokes: to start from, to paint over, or to guide by. "
                "It also shows what the painting guide and GradOP compare."
            ),
            search_aliases=[
                "stroke",
                "posterize",
                "palette",
                "quantize",
                "superpixel",
                "slic",
                "median",
                "paint",
            ],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    display_name="painting",
                    tooltip="The painting, of the size of the picture; one for each of a batch.",
                )
            ],
        )

    @classmethod
    def execute(cls, image, function, brush, colours) -> io.NodeOutput:
        """Paint the pictures one by one."""
        pictures = checks.picture(image, "image")
        width = blur_sigma(brush, *pictures.shape[-2:], scale=1)
        paintings = []
        for picture in pictures.split(1):
            check_interrupt()
            paintings.append(paint(function, picture, width, colours))
        return io.NodeOutput(torch.cat(paintings).movedim(1, -1))


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "image", tooltip="The photo to paint, of any size; or several, each is painted on its own."
        ),
        io.Combo.Input(
            "function",
            options=list(NAMES),
            default="median palette",
            tooltip="gaussian: only blurred. median palette: strokes in a few flat colours, as painted by hand. "
            "superpixel: a mosaic of patches that follow the edges.",
        ),
        io.Float.Input(
            "brush",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Half the width of the brush in px at 512 px; it grows with the picture, and is never below "
            "0.75 px of it. Larger leaves out more details.",
        ),
        io.Int.Input(
            "colours",
            default=8,
            min=1,
            max=64,
            tooltip="How many colours are on the palette of median palette; they are taken from the picture. The other "
            "functions do not use it.",
        ),
    ]


NODES = [PaintingFunction]
