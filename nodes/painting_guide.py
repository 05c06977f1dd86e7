"""GradOP Painting Guide: the picture follows the user's painting and stays realistic.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084): x* = argmin_x L(f(x), y) + gamma *
d(x, x_tau). Here x_tau is the sampler's own estimate at each step, and gamma follows from how sure that estimate is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..guidance.gradop import Relaxed, latent_distance
from ..guidance.painting import PaintingObjective, fitted, trust
from ..guidance.painting_functions import NAMES
from ..guidance.steering import conjugate, descend, steered
from .host import checks
from .host.decoders import DECODERS, check_decoder, open_decoder
from .host.encoders import Encoder
from .host.gradients import memory_advice
from .host.restarts import Moment, Move, Restart, check_interrupt, restart_sampling
from .host.schema import tolerant

DENOISED, RELEASED = "denoised", "released code"
REACH = 3.0  # standard deviations of the estimate: no step goes further
OUT_OF_MEMORY = (
    "The GradOP Painting Guide had no room for its decoder: choose the decoder linear (or taesd) in the node, or "
    "make a smaller picture or fewer at once."
)


@dataclass(frozen=True)
class Settings:
    """The widgets of the node that say how the estimate is moved."""

    strength: float
    tolerance: float
    steps_per_iteration: int
    learning_rate: float
    painting_function: str
    brush: float
    colours: int
    decoder: str
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
                "and any sampler. Best from the encoded painting at denoise 0.7; an empty latent works, too."
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
        tolerance,
        strength,
        start_percent,
        end_percent,
        painting_function,
        brush,
        colours,
        decoder,
        mode,
        steps_per_iteration,
        iterations,
        learning_rate,
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
        _check_mode(mode, painting_function)
        settings = Settings(
            strength,
            tolerance,
            steps_per_iteration,
            learning_rate,
            painting_function,
            brush,
            colours,
            decoder,
            mode,
        )
        begin = partial(_painting_run, model, vae, y, region, settings)
        check = partial(checks.latent_shape, pictures=y, name="painting", pixels_per_cell=pixels_per_cell)
        return io.NodeOutput(restart_sampling(model, begin, start_percent, end_percent, iterations, check))


def _check_mode(mode: str, painting_function: str) -> None:
    if mode == RELEASED and painting_function != NAMES[0]:
        raise ValueError(
            f"mode {RELEASED} compares blurred pictures only, as the authors' program does, but painting_function is "
            f"{painting_function}. Set painting_function to {NAMES[0]}, or mode to {DENOISED}."
        )


@contextmanager
def _painting_run(
    model: Any, vae: Any, painting: Tensor, mask: Tensor | None, settings: Settings
) -> Iterator[Move]:
    """Open the decoder for one run and yield the function that moves its estimates."""
    released = settings.mode == RELEASED
    with open_decoder(settings.decoder, vae, model) as decode:
        view = (settings.brush, settings.painting_function, settings.colours, released)
        objective = PaintingObjective(decode, painting, mask, *view)
        moved = (
            partial(_as_released, objective, settings)
            if released
            else partial(_relaxed, _Calibrated(objective, model, vae), settings)
        )

        def move(moment: Moment) -> Restart:
            with memory_advice(OUT_OF_MEMORY):
                start, end = moved(moment)
            region = None if mask is None else (fitted(mask.to(end), *end.shape[-2:]) > 0).to(end)
            return Restart(steered(start, end, settings.strength, region))

        yield move


def _relaxed(objective: _Calibrated, settings: Settings, moment: Moment) -> tuple[Tensor, Tensor]:
    """Return the estimate, and the optimum of the relaxed problem around it."""
    variance = moment.uncertainty()
    with torch.inference_mode(False):  # tensors of the sampler's inference mode cannot meet gradients
        start = moment.denoised.clone().float()
        near = objective.near(start)
        gamma = trust(settings.tolerance, variance, start.shape[1]) / near.share().to(start)
    problem = Relaxed(near, latent_distance(start), gamma)
    reach = REACH * variance**0.5
    return moment.denoised, conjugate(start, problem, settings.steps_per_iteration, reach, check_interrupt)


def _as_released(objective: PaintingObjective, settings: Settings, moment: Moment) -> tuple[Tensor, Tensor]:
    """Return the noisy latent as if it were clean, before and after a descent, as the authors' program does."""
    start = moment.as_network_input(moment.following)
    near, steps = objective.around(start), settings.steps_per_iteration
    return start, descend(start, near, steps, settings.learning_rate, check_interrupt, elementwise=True)


class _Calibrated:
    """A painting's objective whose decoder, if it is an approximation, is exact for the painting itself.

    That takes one encode of the painting in a run, where to be exact at each estimate takes a decode at each step.
    """

    def __init__(self, objective: PaintingObjective, model: Any, vae: Any) -> None:
        self._objective, self._encode = objective, Encoder(vae, model)
        self._near: PaintingObjective | None = None

    def near(self, latent: Tensor) -> PaintingObjective:
        if self._near is None:
            self._near = self._objective
            if self._objective.decoder.name == "linear":
                side = self._encode.pixels_per_cell
                picture = fitted(self._objective.painting.to(latent), *(side * n for n in latent.shape[-2:]))
                self._near = self._objective.around(self._encode(picture), picture)
        return self._near


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
            "tolerance",
            default=0.1,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="How far colours may stray from the painting: 0.1 is a tenth of the range from black to white. "
            "Smaller follows the painting, larger follows the text. Adjust this first.",
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
            default=0.0,
            **percent,
            tooltip="Where the guide begins: 0 is the first sampling step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            **percent,
            tooltip="Where the guide ends. Earlier: the model repaints more freely. Later: colours stay closer.",
        ),
        io.Combo.Input(
            "painting_function",
            options=list(NAMES),
            default=NAMES[0],
            tooltip="How the picture is seen as a painting: blurred, reduced to strokes in the painting's palette, or "
            "as the means of the painting's superpixels.",
        ),
        io.Float.Input(
            "brush",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How coarse the painting is, in px at 512 px (the blur's sigma); it grows with the picture. Larger "
            "leaves more freedom in the details.",
        ),
        io.Int.Input(
            "colours",
            default=8,
            min=1,
            max=64,
            tooltip="Number of colours of the palette; only the painting function median palette uses it.",
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default="linear",
            tooltip="How latents become colours. vae: exact and heavy. taesd: light, needs the TAESD file in "
            "models/vae_approx. linear: almost free; it shows only blobs of colour, and only those are "
            "compared.",
        ),
        io.Combo.Input(
            "mode",
            options=[DENOISED, RELEASED],
            default=DENOISED,
            tooltip="denoised: steer the model's clean estimate (recommended). released code: does what the "
            "paper's published code does, for comparison (its settings: 3 iterations of 12 steps, learning rate 0.1, "
            "decoder vae).",
        ),
        io.Int.Input(
            "steps_per_iteration",
            default=8,
            min=1,
            max=200,
            tooltip="Optimiser steps at each guided sampling step. 8 is enough for gaussian.",
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
            tooltip="Only for the mode released code: size of a step of its optimiser (Adam), in latent units.",
        ),
    ]


NODES = [PaintingGuide]
