"""RePaint Sampler: zero-shot inpainting that goes back and denoises again until what is new fits what is known.

RePaint: Inpainting using Denoising Diffusion Probabilistic Models (arXiv 2201.09865).
"""

from __future__ import annotations

from comfy_api.latest import io

from .host import checks
from .host.repaint import RePaint
from .host.schema import tolerant
from .host.widgets import PERCENT


class RePaintSampler(io.ComfyNode):
    """SAMPLER -> SAMPLER that goes back to a higher noise level and denoises again, several times."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_RePaintSampler",
            display_name="RePaint Sampler",
            category="guided synthesis/guidance",
            description=(
                "Inpainting with any model: at chosen steps the sampler goes back to more noise and denoises again, so "
                "that what is painted into the mask comes to fit what is around it. For SamplerCustomAdvanced and "
                "SamplerCustom, with a latent that has a noise mask (Set Latent Noise Mask)."
            ),
            search_aliases=["repaint", "inpaint", "resample", "time travel", "seam", "harmonize", "outpaint"],
            inputs=_inputs(),
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="The sampler that goes back.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """Refuse a reversed range before anything runs."""
        return checks.percent_range(start_percent, end_percent) or True

    @classmethod
    def execute(cls, sampler, resamplings, jump_length, start_percent, end_percent) -> io.NodeOutput:
        """Wrap the sampler; with one pass over each step it is the sampler itself."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        if resamplings == 1:
            return io.NodeOutput(sampler)
        return io.NodeOutput(RePaint(sampler, jump_length, resamplings, start_percent, end_percent))


def _inputs() -> list[io.Input]:
    return [
        io.Sampler.Input("sampler", tooltip="The sampler to run, for example from KSamplerSelect."),
        io.Int.Input(
            "resamplings",
            default=3,
            min=1,
            max=32,
            tooltip="How often each step of the range is done. 1: the sampler itself. Steps in all: those of the "
            "schedule + (resamplings - 1) x those in the range. The paper: 10, for 250 steps.",
        ),
        io.Int.Input(
            "jump_length",
            default=5,
            min=1,
            max=100,
            tooltip="How many steps it goes back at a time. The number of steps in all does not depend on it. The "
            "paper: 10 of 250; 5 fits 20 to 30 steps.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            tooltip="Where the range begins: before it, each step is done once. 0 is the first step.",
            **PERCENT,
        ),
        io.Float.Input(
            "end_percent",
            default=0.8,
            tooltip="Where the range ends: after it, each step is done once. The last steps only add details.",
            **PERCENT,
        ),
    ]


NODES = [RePaintSampler]
