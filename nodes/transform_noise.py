"""Transform Noise: turn, flip, shift, scale and mix the noise that sampling starts from, and what stands in it.

On Conditioning the Input Noise for Controlled Image Generation with Diffusion Models (arXiv 2205.03859), Fig. 4: where
the noise is rotated or flipped, so is what is made of it.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..guidance.noise_transforms import FLIPS, Movement
from .host.noises import MixedNoise, TransformedNoise
from .host.schema import tolerant

TURNS = ["0", "90", "180", "270"]
SMALLEST, LARGEST = 0.25, 4.0
SHIFT = {"default": 0.0, "min": -1.0, "max": 1.0, "step": 0.01}


class TransformNoise(io.ComfyNode):
    """NOISE -> NOISE that is turned, flipped, scaled, rotated, shifted and mixed, and of the same statistics."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_TransformNoise",
            display_name="Transform Noise",
            category="guided synthesis/noise",
            description=(
                "Turns, flips, scales, rotates, shifts and mixes the noise that sampling starts from, in this order. "
                "What stands in the noise moves with it; the noise stays as white as it was."
            ),
            search_aliases=["rotate noise", "flip noise", "shift noise", "mix noise", "slerp noise", "noise"],
            inputs=_inputs(),
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="The changed noise, for SamplerCustomAdvanced.")
            ],
        )

    @classmethod
    def execute(cls, noise, turn, flip, scale, angle, shift_x, shift_y, mix, other=None) -> io.NodeOutput:
        """Wrap the noise; where nothing is to be done it is the noise itself."""
        _check(noise, "noise")
        _within("scale", scale, SMALLEST, LARGEST)
        movement = Movement(int(turn) // 90, flip, scale, angle, shift_x, shift_y)
        moved = noise if movement == Movement() else TransformedNoise(noise, movement)
        if other is None:
            return io.NodeOutput(moved)
        _check(other, "other")
        _within("mix", mix, 0, 1)
        return io.NodeOutput(MixedNoise(moved, other, mix) if mix else moved)


def _check(noise: Any, name: str) -> None:
    """Raise ValueError unless `noise` is a NOISE of the host."""
    if not hasattr(noise, "generate_noise") or not hasattr(noise, "seed"):
        raise ValueError(
            f"{name} ({type(noise).__name__}) is not a noise that samplers can ask. Connect Random Noise or Saliency "
            "Noise."
        )


def _within(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless `value` lies from `low` to `high`."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}; choose {low:g} to {high:g}.")


def _inputs() -> list[io.Input]:
    return [
        io.Noise.Input("noise", tooltip="The noise to change, from Random Noise or Saliency Noise."),
        io.Combo.Input(
            "turn",
            options=TURNS,
            default="0",
            tooltip="Quarter turns, in degrees clockwise. Exact. For a latent of any shape: a wide latent gets noise "
            "that was made for a tall one.",
        ),
        io.Combo.Input(
            "flip",
            options=list(FLIPS),
            default="none",
            tooltip="horizontal: left and right change places. vertical: top and bottom do. Exact.",
        ),
        io.Float.Input(
            "scale",
            default=1.0,
            min=SMALLEST,
            max=LARGEST,
            step=0.05,
            tooltip="Enlarges (above 1) or reduces (below 1) what stands in the noise, about the middle. Fresh noise "
            "of the seed fills in what an enlargement lacks in fine grain, and the margin around a reduction.",
        ),
        io.Float.Input(
            "angle",
            default=0.0,
            min=-180.0,
            max=180.0,
            step=1.0,
            tooltip="Rotates by any angle about the middle, in degrees clockwise. Fresh noise of the seed fills the "
            "corners.",
        ),
        io.Float.Input(
            "shift_x",
            tooltip="Shifts to the right, as a share of the width, in whole latent cells (8 px). What leaves on one "
            "side comes in on the other. Exact.",
            **SHIFT,
        ),
        io.Float.Input(
            "shift_y",
            tooltip="Shifts down, as a share of the height, in whole latent cells (8 px). What leaves on one side "
            "comes in on the other. Exact.",
            **SHIFT,
        ),
        io.Float.Input(
            "mix",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far to go from the changed noise (0) to other (1), along the arc between them, on which the "
            "noise keeps its power. Only if other is connected.",
        ),
        io.Noise.Input(
            "other",
            optional=True,
            tooltip="A second noise to mix in, as it is: only noise is turned and moved.",
        ),
    ]


NODES = [TransformNoise]
