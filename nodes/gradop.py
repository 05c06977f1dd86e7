"""GradOP: solves the constrained painting problem itself and brings its optimum back to what the text describes.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084):
    x_tilde = argmin_x L(f(x), y) + gamma * d(x, x_tau); x* = x_tilde, noised to t0 and denoised with the text.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.gradop import (
    COARSER,
    DecodedOnce,
    Optimum,
    Relaxed,
    latent_distance,
    low_pass_distance,
    perceptual_distance,
    relax,
)
from ..guidance.painting import PaintingObjective, blur_sigma, fitted
from ..guidance.painting_functions import NAMES
from ..guidance.seeds import derived_seed
from ..guidance.steering import Objective
from .host import checks
from .host.decoders import DECODERS, check_decoder, open_decoder
from .host.gradients import memory_advice
from .host.plots import curve
from .host.restarts import check_interrupt
from .host.sampling import SAMPLERS, SCHEDULERS, HostSampler, Progress, Report
from .host.schema import tolerant

LATENT, LPIPS, LOW_PASS = "latent", "LPIPS", "low-pass"
FORWARD, INVERSION = "forward diffusion", "ddim inversion"
PHASES = {FORWARD: 1, INVERSION: 2}  # runs of the sampler that a projection takes
LPIPS_NET = "alex"
OUT_OF_MEMORY = (
    "GradOP had no room for its decoder: choose the decoder linear (or taesd) in the node, or make a smaller picture "
    "or fewer at once."
)


@dataclass(frozen=True)
class Relaxation:
    """The widgets of the node that say how the relaxed problem is posed and solved."""

    gamma: float
    distance: str
    iterations: int
    learning_rate: float
    brush: float
    decoder: str


class GradOP(io.ComfyNode):
    """Samples from the text, descends to the painting, projects back: x_tau, x_tilde, x*."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_GradOP",
            display_name="GradOP",
            category="guided synthesis/painting",
            description=(
                "Makes a picture of your prompt that looks like your painting, by optimisation: a sample from the text "
                "is moved towards the painting, then noised and denoised so that it is realistic again. It does "
                "its own sampling and is slower than the GradOP Painting Guide."
            ),
            search_aliases=["gradop", "scribble", "stroke", "paint", "optimisation", "sdedit", "img2img"],
            inputs=[*_sampler_inputs(), *_problem_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        positive,
        negative,
        painting,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        gamma,
        distance,
        iterations,
        learning_rate,
        painting_function,
        brush,
        colours,
        decoder,
        t0,
        projection,
        mask=None,
    ) -> io.NodeOutput:
        """Check everything, then sample, relax, project and measure."""
        checks.image_latent(model)
        scale = check_decoder(decoder, vae, model)
        _check_problem(gamma, distance, decoder, t0)
        y, region = _paintings(painting, mask, scale)
        seen = partial(
            PaintingObjective,
            painting=y,
            mask=region,
            brush=brush,
            function=painting_function,
            colours=colours,
        )
        relaxation = Relaxation(gamma, distance, iterations, learning_rate, brush, decoder)
        sampler = HostSampler(model, positive, negative, steps, cfg, sampler_name, scheduler)
        progress = Progress(model, steps * (1 + PHASES[projection] * (t0 > 0)) + iterations)

        x_tau = sampler.from_text(
            len(y), y.shape[-2] // scale, y.shape[-1] // scale, seed, progress.phase(steps)
        )
        x_tilde, losses = _relaxed(model, vae, x_tau, seen, relaxation, progress.phase(iterations))
        x_star = _projected(sampler, x_tilde, t0, projection, derived_seed(seed, 1), progress)
        distances = [_painting_distance(vae, latent, seen, scale) for latent in (x_tau, x_star)]
        latents = ({"samples": latent} for latent in (x_star, x_tilde, x_tau))
        return io.NodeOutput(*latents, *distances, ui=_preview(cls, losses))


def _check_problem(gamma: float, distance: str, decoder: str, t0: float) -> None:
    """Raise ValueError for values that a linked input may bring, or that do not go together."""
    if not 0 <= t0 <= 1:
        raise ValueError(
            f"t0 is {t0:g}; it is the noise level of the projection and lies between 0 (none) and 1 (the whole "
            "schedule). Choose such a value, 0.8 for example."
        )
    if gamma < 0:
        raise ValueError(f"gamma is {gamma:g}; it weighs a distance, so choose 0 or more.")
    if distance != LPIPS:
        return
    if decoder == "linear":
        raise ValueError(
            "The distance LPIPS compares pictures, and the decoder linear shows only blobs of colour. Choose the "
            "decoder vae or taesd, or the distance latent or low-pass."
        )
    from .host.perceptual import check_lpips  # the package lpips is only needed here

    check_lpips(LPIPS_NET)


def _paintings(painting: Tensor, mask: Tensor | None, scale: int) -> tuple[Tensor, Tensor | None]:
    """Return paintings (B, 3, H, W) and masks (1 or B, 1, H, W), cropped to whole latent cells."""
    y = checks.picture(painting, "painting")
    height, width = y.shape[-2:]
    if min(height, width) < scale:
        raise ValueError(
            f"painting is {width}x{height} px, smaller than one latent cell of {scale} px. Its size is the size of the "
            "picture: scale it up, to 512x512 px for example."
        )
    region = checks.mask(mask, y, "mask")
    if region is None:
        return _whole_cells(y, scale), None
    if len(region) not in (1, len(y)):
        raise ValueError(
            f"mask has {len(region)} masks for {len(y)} paintings; give one, or one for each painting."
        )
    return _whole_cells(y, scale), _whole_cells(fitted(region, height, width), scale)


def _whole_cells(picture: Tensor, scale: int) -> Tensor:
    """Crop `picture` (B, C, H, W) around its middle to multiples of `scale`, as the host's VAE Encode does."""
    height, width = picture.shape[-2:]
    top, left = height % scale // 2, width % scale // 2
    return picture[..., top : top + height // scale * scale, left : left + width // scale * scale]


def _relaxed(
    model: Any,
    vae: Any,
    x_tau: Tensor,
    seen: Callable[..., PaintingObjective],
    relaxation: Relaxation,
    report: Report,
) -> tuple[Tensor, Tensor]:
    """Return the optimum x_tilde, as samples of a LATENT like `x_tau`, and the losses on the way."""
    if relaxation.iterations == 0:
        return x_tau, x_tau.new_zeros(0, len(x_tau))

    def tick(step: int, latent: Tensor) -> None:
        check_interrupt()
        report(step, latent, None, 0)

    start = model.model.process_latent_in(x_tau).to(model.load_device, torch.float32)
    with ExitStack() as opened, memory_advice(OUT_OF_MEMORY):
        problem = _problem(model, vae, start, seen, relaxation, opened)
        optimum: Optimum = relax(start, problem, relaxation.iterations, relaxation.learning_rate, tick)
    return model.model.process_latent_out(optimum.latent).to(x_tau), optimum.losses


def _problem(
    model: Any,
    vae: Any,
    anchor: Tensor,
    seen: Callable[..., PaintingObjective],
    relaxation: Relaxation,
    opened: ExitStack,
) -> Relaxed:
    """Return the relaxed problem around `anchor`, x_tau in the model's space; `opened` closes its networks."""
    decode = opened.enter_context(open_decoder(relaxation.decoder, vae, model))
    away: Objective
    if relaxation.distance == LPIPS:
        from .host.perceptual import open_lpips

        decode = DecodedOnce(decode)
        away = perceptual_distance(anchor, decode, opened.enter_context(open_lpips(LPIPS_NET)))
    elif relaxation.distance == LOW_PASS:
        # the painting function's own scale in latent cells, many times coarser
        sigma = COARSER * blur_sigma(
            relaxation.brush, *(decode.scale * side for side in anchor.shape[-2:]), 1
        )
        away = low_pass_distance(anchor, sigma)
    else:
        away = latent_distance(anchor)
    return Relaxed(seen(decode), away, relaxation.gamma)


def _projected(
    sampler: HostSampler, x_tilde: Tensor, t0: float, projection: str, seed: int, progress: Progress
) -> Tensor:
    """Return x*: `x_tilde` brought up to the noise level of `t0` and denoised with the text."""
    if t0 == 0:
        return x_tilde
    if projection == FORWARD:
        return sampler.from_picture(x_tilde, t0, seed, progress.phase(sampler.steps))
    noisy = sampler.inverted(x_tilde, t0, progress.phase(sampler.steps))
    return sampler.from_noisy(noisy, t0, seed, progress.phase(sampler.steps))


class _Pictures:
    """The decoder of what is a picture already, of a VAE with `scale` px per latent cell."""

    name, cost, calls = "pictures", "Nothing.", 0

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def around(self, latent: Tensor, picture: Tensor | None = None) -> _Pictures:
        return self

    def __call__(self, latent: Tensor) -> Tensor:
        return latent


def _painting_distance(vae: Any, latent: Tensor, seen: Callable[..., PaintingObjective], scale: int) -> float:
    """Return the painting distance of the VAE's picture of `latent`, the mean over the batch."""
    pictures = vae.decode(latent).movedim(-1, 1).float()
    with torch.inference_mode(False), torch.no_grad():
        return seen(_Pictures(scale))(pictures.clone()).mean().item()


def _preview(cls: type[io.ComfyNode], losses: Tensor) -> ui.PreviewImage | None:
    if not len(losses):
        return None
    return ui.PreviewImage(curve(losses, "GradOP: convergence", "L + gamma d"), cls=cls)


def _sampler_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model. LoRAs and other patches may come before."),
        io.Vae.Input(
            "vae", tooltip="The VAE of this model: it turns latents into the colours that are compared."
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="The text: what the painting shows. ControlNets and areas work as in a KSampler.",
        ),
        io.Conditioning.Input("negative", tooltip="What the picture shall not show."),
        io.Image.Input(
            "painting",
            tooltip="Your painting (RGB). The picture gets its size, cropped to whole latent cells (8 px); a batch of "
            "paintings makes as many pictures.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the painting counts: white fully, grey less, black not at all. Not connected: everywhere.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The noise of the sample from the text (a KSampler with this seed makes the same); the noise "
            "of the projection follows from it.",
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10000,
            tooltip="Sampling steps, for the sample from the text and again for the projection.",
        ),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly the text counts (classifier-free guidance).",
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(SAMPLERS),
            default="euler",
            tooltip="The sampler. One without fresh noise (euler, dpmpp_2m, ...) goes best with ddim inversion.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default="normal",
            tooltip="How the noise levels are spaced.",
        ),
    ]


def _problem_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "gamma",
            default=0.003,
            min=0.0,
            max=100.0,
            step=0.0001,
            round=0.00001,
            tooltip="How much the optimum shall resemble the sample from the text. 0: only the painting counts. "
            "Larger: closer to the sample.",
        ),
        io.Combo.Input(
            "distance",
            options=[LATENT, LPIPS, LOW_PASS],
            default=LATENT,
            tooltip="How resemblance is measured. latent: everything counts. LPIPS: how the pictures look (not with "
            "the decoder linear). low-pass: only the large masses, four times coarser than the brush.",
        ),
        io.Int.Input(
            "iterations",
            default=200,
            min=0,
            max=10000,
            tooltip="Optimiser steps (Adam) at most; it stops earlier when the loss is flat. 0: none at all.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.1,
            min=0.001,
            max=2.0,
            step=0.001,
            tooltip="Size of an optimiser step, in units of the latent. Larger is faster and rougher.",
        ),
        io.Combo.Input(
            "painting_function",
            options=list(NAMES),
            default=NAMES[0],
            tooltip="How a picture is seen as a painting: blurred, reduced to the painting's palette, or as the means "
            "of the painting's superpixels.",
        ),
        io.Float.Input(
            "brush",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Size of the brush in px at 512 px; it grows with the picture. Larger leaves more freedom in the "
            "details.",
        ),
        io.Int.Input(
            "colours",
            default=8,
            min=1,
            max=64,
            tooltip="Number of colours of the palette; only the median palette uses it.",
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default="linear",
            tooltip="How latents become colours while optimising. vae: exact and heavy. taesd: light, needs the TAESD "
            "file in models/vae_approx. linear: almost free, corrected by one decode every 10 steps.",
        ),
        io.Float.Input(
            "t0",
            default=0.6,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Noise level of the projection, as the denoise of img2img. Lower: closer to the painting. Higher: "
            "more realistic. 0: no projection.",
        ),
        io.Combo.Input(
            "projection",
            options=[FORWARD, INVERSION],
            default=FORWARD,
            tooltip="How the optimum gets its noise. forward diffusion: random noise, as img2img. ddim inversion: the "
            "noise that leads to it, which keeps more of it and takes another run of the sampler.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="x_star", tooltip="The result: realistic, and close to the painting."),
        io.Latent.Output(
            display_name="x_tilde", tooltip="The optimum before the projection: closest to the painting."
        ),
        io.Latent.Output(
            display_name="x_tau", tooltip="The sample from the text alone, where the optimisation began."
        ),
        io.Float.Output(
            display_name="distance_before",
            tooltip="Painting distance of x_tau (mean squared difference of colours).",
        ),
        io.Float.Output(display_name="distance_after", tooltip="Painting distance of x_star."),
    ]


NODES = [GradOP]
