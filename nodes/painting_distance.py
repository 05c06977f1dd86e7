"""Painting Distance: how far a picture is from a painting, as a number and as a heat map.

The loss L(f(x), f(y)) of High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084), by the
same code that the painting guide descends.
"""

from __future__ import annotations

import matplotlib
import torch
from comfy_api.latest import io
from torch import Tensor

from ..guidance.painting import PaintingObjective, Pixels
from ..guidance.painting_functions import NAMES
from .host import checks
from .host.schema import tolerant

BRIGHTEST = 0.5  # colour difference (root mean square of R, G, B) at the bright end of the heat map


class PaintingDistance(io.ComfyNode):
    """IMAGE and painting -> FLOAT and heat map: the difference of the two, both seen through a painting function."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_PaintingDistance",
            display_name="Painting Distance",
            category="guided synthesis/painting",
            description=(
                "Measures how faithfully a picture follows a painting: one number to compare settings by, and a map of "
                "where it strays."
            ),
            search_aliases=["faithfulness", "mse", "difference", "compare", "metric", "heat map", "heatmap"],
            inputs=_inputs(),
            outputs=[
                io.Float.Output(
                    display_name="distance",
                    tooltip="Mean squared difference of the colours (0 to 1), both pictures seen through the function; "
                    "mean over the batch. 0: they agree. Below about 0.005 the painting is well met.",
                ),
                io.Image.Output(
                    display_name="heat map",
                    tooltip="Black: no difference. Pale yellow: half of the full colour range or more. The scale is "
                    "fixed, so maps can be compared.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, painting, function, brush, colours, mask=None) -> io.NodeOutput:
        """Compare, average, draw."""
        pictures, target = checks.picture(image, "image"), checks.picture(painting, "painting")
        checks.same_shape(target, *pictures.shape[-2:], "painting", "image")
        region = checks.mask(mask, target, "mask")
        _check_counts(pictures, painting=target, mask=region)
        target, region = (None if value is None else value.to(pictures) for value in (target, region))
        objective = PaintingObjective(Pixels(), target, region, brush, function, colours)
        errors = objective.errors(pictures).mean(1)  # (B, H, W)
        return io.NodeOutput(
            objective(pictures).mean().item(), heat_map(errors * _shown(objective, pictures))
        )


def heat_map(errors: Tensor) -> Tensor:
    """Return squared differences `errors` (B, H, W) as IMAGE (B, H, W, 3) in magma, from 0 (black) to `BRIGHTEST`^2."""
    shade = (errors.sqrt() / BRIGHTEST).clamp(0, 1).cpu().numpy()
    return torch.from_numpy(matplotlib.colormaps["magma"](shade)[..., :3]).float()


def _shown(objective: PaintingObjective, pictures: Tensor) -> Tensor:
    weight = objective.weight(pictures)
    return pictures.new_ones(()) if weight is None else weight[:, 0]


def _check_counts(pictures: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and len(value) not in (1, len(pictures)):
            raise ValueError(
                f"{name} has {len(value)} pictures but image has {len(pictures)}; give one, or one for each image."
            )


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The picture to measure, or several."),
        io.Image.Input(
            "painting",
            tooltip="The painting it should follow: one, or one for each image. It is resized to the image.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the painting counts: white fully, grey less, black not at all. Not connected: everywhere.",
        ),
        io.Combo.Input(
            "function",
            options=list(NAMES),
            default="gaussian",
            tooltip="What both are seen through. gaussian: blurred. median palette: strokes in the painting's colours. "
            "superpixel: the means over the painting's patches.",
        ),
        io.Float.Input(
            "brush",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How coarsely the two are compared, in px at 512 px; it grows with the image. Larger "
            "forgives more.",
        ),
        io.Int.Input(
            "colours",
            default=8,
            min=1,
            max=64,
            tooltip="How many colours median palette takes from the painting. The other functions do not use it.",
        ),
    ]


NODES = [PaintingDistance]
