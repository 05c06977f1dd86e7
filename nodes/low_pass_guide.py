"""Low-Pass Guide (ILVR): layout and colours come from a reference picture, everything finer from the model.

ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models (arXiv 2108.02938).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..guidance.low_pass import clean_part, clean_part_in_pixels, noise_part
from ..guidance.painting import fitted
from .host import checks
from .host.decoders import check_decoder, open_decoder
from .host.encoders import Encoder
from .host.gradients import memory_advice
from .host.restarts import Moment, Move, Restart, restart_sampling
from .host.schema import tolerant

LATENT, PIXEL = "latent", "pixel"
# linear is missing: to be right about colours it takes a decode of the VAE at each step, as much as vae does here
DECODERS = ("vae", "taesd")
OUT_OF_MEMORY = (
    "The Low-Pass Guide had no room for the VAE: choose the space latent in the node, or make a smaller picture or "
    "fewer at once."
)


@dataclass(frozen=True)
class Settings:
    """The widgets of the node, and the VAE's px per latent cell."""

    factor: int
    strength: float
    space: str
    decoder: str
    scale: int


class LowPassGuide(io.ComfyNode):
    """MODEL patch: after each step the low frequencies are replaced by those of a reference picture (ILVR)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_LowPassGuide",
            display_name="Low-Pass Guide (ILVR)",
            category="guided synthesis/painting",
            description=(
                "Makes the picture look like a reference when both are reduced to a few pixels: layout and colours "
                "stay, everything finer is the model's. Put it between the checkpoint and any sampler; start from an "
                "empty latent at denoise 1."
            ),
            search_aliases=["ilvr", "low pass", "reference", "composition", "colour guide", "variation"],
            inputs=_inputs(),
            outputs=[io.Model.Output(display_name="model", tooltip="The model, guided by the reference.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """Refuse a reversed range before anything runs."""
        return checks.percent_range(start_percent, end_percent) or True

    @classmethod
    def execute(
        cls, model, vae, reference, factor, space, strength, start_percent, end_percent, decoder
    ) -> io.NodeOutput:
        """Check everything, then return the guided model."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        checks.image_latent(model)
        y = checks.picture(reference, "reference")
        scale = check_decoder(decoder if space == PIXEL else "vae", vae, model)
        _check_factor(factor, space, scale)
        if strength == 0:
            return io.NodeOutput(model)
        begin = partial(_low_pass_run, model, vae, y, Settings(factor, strength, space, decoder, scale))
        check = partial(checks.latent_shape, pictures=y, name="reference", pixels_per_cell=scale)
        return io.NodeOutput(restart_sampling(model, begin, start_percent, end_percent, 0, check))


@contextmanager
def _low_pass_run(model: Any, vae: Any, reference: Tensor, settings: Settings) -> Iterator[Move]:
    """Prepare one run and yield the function that replaces its low frequencies."""
    clean = _in_latents if settings.space == LATENT else _in_pixels
    # noise lives in latents, whatever the picture is compared in; less than a cell cannot be reduced
    cells = max(1.0, settings.factor / settings.scale)
    with clean(model, vae, reference, settings) as corrected:

        def move(moment: Moment) -> Restart:
            with memory_advice(OUT_OF_MEMORY):
                latent = corrected(moment.denoised)
            noise = noise_part(moment.noise(), moment.fresh_noise, cells, settings.strength)
            return Restart(latent, noise)

        yield move


@contextmanager
def _in_latents(model: Any, vae: Any, reference: Tensor, settings: Settings) -> Iterator[Callable]:
    encode, known = Encoder(vae, model), {}

    def corrected(latent: Tensor) -> Tensor:
        if not known:  # a run has one size
            known["y"] = encode(_like_picture(reference, latent, settings.scale))
        return clean_part(latent, known["y"], settings.factor / settings.scale, settings.strength)

    yield corrected


@contextmanager
def _in_pixels(model: Any, vae: Any, reference: Tensor, settings: Settings) -> Iterator[Callable]:
    encode = Encoder(vae, model)
    with open_decoder(settings.decoder, vae, model) as decode:

        def corrected(latent: Tensor) -> Tensor:
            y = _like_picture(reference, latent, settings.scale)
            return clean_part_in_pixels(latent, y, settings.factor, decode, encode, settings.strength)

        yield corrected


def _like_picture(reference: Tensor, latent: Tensor, scale: int) -> Tensor:
    """Return `reference` (1 or B, 3, H, W) at the size in px of `latent` (B, C, h, w), on its device."""
    return fitted(reference.to(latent.device), latent.shape[-2] * scale, latent.shape[-1] * scale)


def _check_factor(factor: int, space: str, scale: int) -> None:
    if space == LATENT and factor < 2 * scale:
        raise ValueError(
            f"factor is {factor} px, but a latent cell is {scale} px: below two cells nearly the whole latent would be "
            f"the reference's. Set factor to {2 * scale} or more, or space to pixel."
        )


def _inputs() -> list[io.Input]:
    percent = {"min": 0.0, "max": 1.0, "step": 0.01}
    return [
        io.Model.Input(
            "model", tooltip="The model to guide. LoRAs, ControlNets and other patches may come before."
        ),
        io.Vae.Input("vae", tooltip="The VAE of this model: it turns the reference into latents."),
        io.Image.Input(
            "reference",
            tooltip="The picture whose layout and colours are kept (RGB, same shape as the picture): a photo or a "
            "painting. One, or one for each picture of the batch.",
        ),
        io.Int.Input(
            "factor",
            default=32,
            min=2,
            max=256,
            tooltip="Reduced by this factor (px), both pictures look the same. 4, 8: all but details are kept; "
            "16, 32, 64, 128: layout and colours, ever coarser; or any number. In latents at least 16.",
        ),
        io.Combo.Input(
            "space",
            options=[LATENT, PIXEL],
            default=LATENT,
            tooltip="Where the low frequencies are replaced. latent: costs nothing. pixel: exact colours, and factors "
            "below 16, for a decode and two encodes of the VAE at each guided step.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the low frequencies is replaced at each guided step. 1: all, as in the paper. 0 "
            "switches the guide off.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            **percent,
            tooltip="Where the guide begins: 0 is the first sampling step.",
        ),
        io.Float.Input(
            "end_percent",
            default=0.8,
            **percent,
            tooltip="Where the guide ends. Earlier: freer and more realistic. Later: closer to the reference.",
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default=DECODERS[0],
            tooltip="For space pixel: how latents become a picture. vae: exact. taesd: lighter, needs the TAESD file "
            "in models/vae_approx. Space latent does not use it.",
        ),
    ]


NODES = [LowPassGuide]
