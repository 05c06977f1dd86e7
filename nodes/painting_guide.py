"""GradOP Painting Guide: the picture follows the user's painting and stays realistic.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084): x* = argmin_x L(f(x), y).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from comfy_api.latest import io
from torch import Tensor

from ..guidance.painting import PaintingObjective, fitted
from ..guidance.steering import descend, steered
from .host import checks
from .host.decoders import DECODERS, check_decoder, open_decoder
from .host.gradients import memory_advice
from .host.restarts import Moment, Move, check_interrupt, restart_sampling
from .host.schema import tolerant

DENOISED, RELEASED = "denoised", "released code"
OUT_OF_MEMORY = (
    "The GradOP Painting Guide had no room for its decoder: choose the decoder linear (or taesd) in the node, or "
    "make a smaller picture or fewer at once."
)


@dataclass(frozen=True)
class Settings:
    """The widgets of the node that say how the estimate is moved."""

    strength: float
    steps_per_iteration: int
    learning_rate: float
    blur: float
    mode: str


class PaintingGuide(io.ComfyNode):
    """MODEL patch: at some steps the estimate is moved towards a painting and noised afresh (GradOP+)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_PaintingGuide",
            display_name="GradOP Painting Guide",
            category="guided synthesis/painting",
            description=(
                "Makes the picture follow a rough painting and stay realistic (GradOP+). Put it between the checkpoint "
                "and any sampler; start from an empty latent at denoise 1."
            ),
            search_aliases=["gradop", "scribble", "stroke", "paint", "colour guide", "sdedit", "img2img"],
            inputs=_inputs(),
            outputs=[io.Model.Output(display_name="model", tooltip="The model, guided by the painting.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """Refuse a reversed range before anything runs."""
        return checks.percent_range(start_percent, end_percent) or True

    @classmethod
    def execute(
        cls,
        model,
        vae,
        painting,
        strength,
        start_percent,
        end_percent,
        steps_per_iteration,
        iterations,
        learning_rate,
        blur,
        decoder,
        mode,
        mask=None,
    ) -> io.NodeOutput:
        """Check everything, then return the guided model."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        checks.image_latent(model)
        y = checks.picture(painting, "painting")
        region = checks.mask(mask, y, "mask")
        pixels_per_cell = check_decoder(decoder, vae, model)
        if strength == 0:
            return io.NodeOutput(model)
        settings = Settings(strength, steps_per_iteration, learning_rate, blur, mode)
        begin = partial(_painting_run, model, vae, decoder, y, region, settings)
        check = partial(checks.latent_shape, pictures=y, name="painting", pixels_per_cell=pixels_per_cell)
        return io.NodeOutput(restart_sampling(model, begin, start_percent, end_percent, iterations, check))


@contextmanager
def _painting_run(
    model, vae, decoder: str, painting: Tensor, mask: Tensor | None, settings: Settings
) -> Iterator[Move]:
    """Open the decoder for one run and yield the function that moves its estimates."""
    with open_decoder(decoder, vae, model) as decode:
        released, steps = settings.mode == RELEASED, settings.steps_per_iteration
        objective = PaintingObjective(decode, painting, mask, settings.blur, released_code=released)

        def move(moment: Moment) -> Tensor:
            # the released program decodes the noisy latent as if it were clean
            start = moment.as_network_input(moment.following) if released else moment.denoised
            with memory_advice(OUT_OF_MEMORY):
                near = objective.around(start)
                moved = descend(start, near, steps, settings.learning_rate, check_interrupt, released)
            region = None if mask is None else fitted(mask.to(moved), *moved.shape[-2:])
            return steered(start, moved, settings.strength, region)

        yield move


def _inputs() -> list[io.Input]:
    percent = {"min": 0.0, "max": 1.0, "step": 0.01}
    return [
        io.Model.Input(
            "model", tooltip="The model to guide. LoRAs, ControlNets and other patches may come before."
        ),
        io.Vae.Input(
            "vae", tooltip="The VAE of this model: it turns latents into the colours that are compared."
        ),
        io.Image.Input(
            "painting",
            tooltip="Your painting (RGB, same shape as the picture): blobs of colour where you want them. One, or "
            "one for each picture of the batch.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the painting counts: white fully, grey less, black not at all. Not connected: everywhere.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the correction is used at each guided step. 0 switches the guide off.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.2,
            **percent,
            tooltip="Where the guide begins: 0 is the first sampling step.",
        ),
        io.Float.Input(
            "end_percent",
            default=0.8,
            **percent,
            tooltip="Where the guide ends. Earlier: the model repaints more freely. Later: colours stay closer.",
        ),
        io.Int.Input(
            "steps_per_iteration",
            default=24,
            min=1,
            max=200,
            tooltip="Optimiser steps at each guided sampling step. More follows the painting more closely.",
        ),
        io.Int.Input(
            "iterations",
            default=0,
            min=0,
            max=1000,
            tooltip="Guide only this many sampling steps from start_percent on. 0: every step of the range.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.1,
            min=0.001,
            max=2.0,
            step=0.001,
            tooltip="Size of an optimiser step (Adam), in units of the latent. Larger follows faster and rougher.",
        ),
        io.Float.Input(
            "blur",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How blurred the picture is when compared with the painting, in px at 512 px; it grows with the "
            "picture. Larger leaves more freedom in the details.",
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default="linear",
            tooltip="How latents become colours. vae: exact and heavy. taesd: light, needs the TAESD file in "
            "models/vae_approx. linear: almost free, shows blobs of colour, which is what is compared.",
        ),
        io.Combo.Input(
            "mode",
            options=[DENOISED, RELEASED],
            default=DENOISED,
            tooltip="denoised: steer the model's clean estimate (recommended). released code: what the paper's "
            "program does, for comparison (there: 3 iterations of 12 steps at learning rate 0.1, decoder vae).",
        ),
    ]


NODES = [PaintingGuide]
