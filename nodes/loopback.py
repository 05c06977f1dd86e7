"""Loopback Sampler: repeated SDEdit as a SAMPLER, img2img again and again on its own result.

SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (arXiv 2108.01073).
"""

from __future__ import annotations

from comfy_api.latest import io

from .host.repeats import Repeated
from .host.schema import tolerant


class Loopback(io.ComfyNode):
    """SAMPLER -> SAMPLER that noises its result and denoises it again, several times."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_Loopback",
            display_name="Loopback Sampler",
            category="guided synthesis/painting",
            description=(
                "Runs a sampler again and again on its own result: each repeat adds some noise and denoises it "
                "(img2img in a loop). Small repeats move a painting step by step towards a realistic picture. For "
                "SamplerCustomAdvanced and SamplerCustom."
            ),
            search_aliases=["loopback", "img2img loop", "iterative", "repeat", "sdedit", "refine"],
            inputs=_inputs(),
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="The repeating sampler.")],
        )

    @classmethod
    def validate_inputs(cls, repeats: int | None = None, denoise: float | None = None) -> bool | str:
        """Refuse repeats that do nothing before anything runs."""
        return _no_noise(repeats, denoise) or True

    @classmethod
    def execute(cls, sampler, repeats, denoise, denoise_change, noise_seed) -> io.NodeOutput:
        """Wrap the sampler; a single pass is the sampler itself."""
        if problem := _no_noise(repeats, denoise):
            raise ValueError(problem)
        if repeats == 1:
            return io.NodeOutput(sampler)
        return io.NodeOutput(Repeated(sampler, repeats, denoise, denoise_change, noise_seed))


def _no_noise(repeats: int | None, denoise: float | None) -> str | None:
    if repeats is None or denoise is None or repeats == 1 or denoise > 0:
        return None
    return (
        f"denoise is {denoise:g}, so the repeats of the Loopback Sampler would change nothing. Set denoise above 0 "
        "(0.3 to 0.6 is usual), or repeats to 1."
    )


def _inputs() -> list[io.Input]:
    return [
        io.Sampler.Input("sampler", tooltip="The sampler to repeat, for example from KSamplerSelect."),
        io.Int.Input(
            "repeats",
            default=4,
            min=1,
            max=32,
            tooltip="How many passes in all. The first is the sampler's own, over the whole schedule that you connect. "
            "1: nothing is repeated.",
        ),
        io.Float.Input(
            "denoise",
            default=0.4,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far back each repeat goes, as in img2img: the picture is noised to the first step of your "
            "schedule at or below this level, and denoised from there. 1 starts over each time.",
        ),
        io.Float.Input(
            "denoise_change",
            default=1.0,
            min=0.1,
            max=2.0,
            step=0.01,
            tooltip="After each repeat, denoise is multiplied by this, but never exceeds 1. Below 1 the repeats become "
            "finer.",
        ),
        io.Int.Input(
            "noise_seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="Re-noise seed: the noise of the repeats. Each repeat has its own; the first pass uses the seed of "
            "the noise that you connect.",
        ),
    ]


NODES = [Loopback]
