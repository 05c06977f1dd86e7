"""Invert: the noise that sampling makes a given picture of, by DDIM, exactly, or with O-BELM; and what follows it.

DDIM inversion (arXiv 2010.02502), implicit inversion (AIDI, arXiv 2309.04907), O-BELM (arXiv 2410.07273), direct
inversion (arXiv 2310.01506).
"""

from __future__ import annotations

import logging

from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn.functional import interpolate

from ..guidance.inversion import BELM, DDIM, IMPLICIT
from ..guidance.trajectory import Trajectory
from .host import checks
from .host.direct_inversion import Kept, keep_source
from .host.inversion import InvertedNoise, belm_sampler, invert, round_trip, tolerance_problem
from .host.plots import curve
from .host.sampling import Progress
from .host.schema import tolerant
from .host.sockets import TrajectorySocket
from .host.widgets import switch

CATEGORY = "guided synthesis/inversion"
PIXELS_PER_CELL = 8  # of SD 1.x, 2.x and SDXL
SEEN = 0.02  # rms of latents; on the demo model a photo loses 0.2 dB by it, against what the VAE alone loses


class Invert(io.ComfyNode):
    """Finds the noise of a picture, and every noisy latent between the two."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_Invert",
            display_name="Invert (DDIM, implicit, O-BELM)",
            category=CATEGORY,
            description=(
                "Finds the noise from which your photo is sampled again, so that you can change a word and keep the "
                "rest. Sample with the same SIGMAS and with euler or ddim (o-belm: with the BELM Sampler)."
            ),
            search_aliases=[
                "ddim inversion",
                "unsample",
                "unsampler",
                "edit photo",
                "noise of image",
                "renoise",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, tolerance: float | None = None) -> bool | str:
        """Refuse a tolerance of 0 before anything runs."""
        return tolerance_problem(tolerance) or True

    @classmethod
    def execute(
        cls, model, positive, cfg, sigmas, latent, method, tolerance, max_iterations, negative=None
    ) -> io.NodeOutput:
        """Invert, and show how well it went."""
        steps, checked = len(sigmas) - 1, method == IMPLICIT
        progress, samples = Progress(model, steps * (1 + checked)), latent["samples"]
        trajectory = invert(
            model,
            positive,
            negative,
            cfg,
            sigmas,
            samples,
            method,
            tolerance,
            max_iterations,
            progress.phase(steps),
        )
        missed = None
        if checked:
            missed = round_trip(model, positive, negative, trajectory, progress.phase(steps))
        noisy = {key: value for key, value in latent.items() if key != "noise_mask"}
        noisy["samples"] = model.model.process_latent_out(trajectory.latents[0].float())
        text = _described(trajectory, tolerance, missed)
        logging.info("Guided Synthesis: %s", text)
        plot = curve(trajectory.residuals, f"{method}: error of each step", "error (rms)", "sampling step")
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(noisy, InvertedNoise(model, trajectory), trajectory, ui=shown)


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="SD 1.x, SD 2.x or SDXL; LoRAs and other patches count."),
        io.Conditioning.Input("positive", tooltip="What the photo shows, in your words: the source prompt."),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="The negative prompt; at cfg 1 it is not needed."
        ),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Guidance scale that the noise is for. 1: for null-text optimisation, direct inversion and "
            "editing in general. To rebuild the photo at another cfg, set that and choose implicit.",
        ),
        io.Sigmas.Input(
            "sigmas",
            tooltip="The schedule as sampling uses it (from Basic Scheduler, denoise 1), not flipped.",
        ),
        io.Latent.Input("latent", tooltip="The photo, from VAE Encode."),
        io.Combo.Input(
            "method",
            options=[DDIM, IMPLICIT, BELM],
            default=IMPLICIT,
            tooltip="ddim: one model call a step, with an error. implicit: solves each step, so that euler "
            "gives the photo back; two to five calls a step, and one more to check. o-belm: "
            "one call a step and exact, with the BELM Sampler only.",
        ),
        io.Float.Input(
            "tolerance",
            default=0.0003,
            min=0.0,
            max=1.0,
            step=0.0001,
            round=0.0000001,
            tooltip="implicit: a step is solved when its error (root mean square, latents are about 1) is "
            "below this.",
        ),
        io.Int.Input(
            "max_iterations",
            default=10,
            min=1,
            max=100,
            tooltip="implicit: model calls that a step takes at most. The plot shows the steps that were "
            "not solved by then.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(
            display_name="latent",
            tooltip="The noise as a latent: for KSampler (Advanced) with add_noise disabled.",
        ),
        io.Noise.Output(
            display_name="noise",
            tooltip="The noise for SamplerCustomAdvanced, with the photo's latent or an empty one of its size.",
        ),
        TrajectorySocket.Output(
            display_name="trajectory",
            tooltip="The noisy latents of all steps, for the nodes of this group.",
        ),
    ]


def _described(trajectory: Trajectory, tolerance: float, missed: Tensor | None = None) -> str:
    """Return how an inversion went: calls, errors, steps that were not solved, and how much noise it is.

    `missed` (B,): what a round trip misses each picture by, if one was made.
    """
    steps, calls = trajectory.steps, trajectory.calls
    spread = trajectory.latents[0].flatten(1).std(1) / (1 + trajectory.sigmas[0] ** 2).sqrt()
    said = [f"{trajectory.method}: {calls} model calls for {steps} steps ({calls / steps:.1f} a step)."]
    if trajectory.method == DDIM:
        said.append("ddim does not measure its error; implicit does.")
    if trajectory.method == IMPLICIT:
        unsolved = (~(trajectory.residuals <= tolerance)).any(1)
        said.append(f"Worst error of a step: {trajectory.residuals.max():.2g}.")
        if unsolved.any():
            said.append(
                f"NOT SOLVED to {tolerance:g}: {int(unsolved.sum())} steps, so the photo may come back with errors. "
                "Raise max_iterations or steps, or lower cfg."
            )
    if missed is not None:
        said.append(f"Sampled again ({steps} more calls) it misses the photo by {_listed(missed, '.2g')}.")
        if not bool((missed <= SEEN).all()):
            said.append(
                f"THE PHOTO WILL NOT COME BACK (more than {SEEN:g}): here sampling magnifies small errors. "
                "Lower tolerance or cfg, or use Direct Inversion."
            )
    said.append(f"Standard deviation of the noise: {_listed(spread, '.2f')} (pure noise: 1).")
    return " ".join(said)


def _listed(values: Tensor, form: str) -> str:
    return ", ".join(f"{value:{form}}" for value in values.tolist())


class BELMSampler(io.ComfyNode):
    """SAMPLER O-BELM: each latent follows from the two before it, exactly in both directions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_BELMSampler",
            display_name="BELM Sampler",
            category=CATEGORY,
            description=(
                "The sampler for pictures inverted with o-belm: with the same prompt, cfg and sigmas it gives them "
                "back exactly. Without a trajectory it samples from any noise."
            ),
            search_aliases=["o-belm", "exact inversion", "edict", "bdia"],
            inputs=[
                TrajectorySocket.Input(
                    "trajectory",
                    optional=True,
                    tooltip="From Invert with the method o-belm: it holds the second latent that the sampler needs.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler", tooltip="For SamplerCustom and SamplerCustomAdvanced."
                )
            ],
        )

    @classmethod
    def execute(cls, trajectory=None) -> io.NodeOutput:
        """Build the sampler."""
        return io.NodeOutput(belm_sampler(trajectory))


class DirectInversion(io.ComfyNode):
    """MODEL patch: the inverted picture's own branch returns to its trajectory at every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_DirectInversion",
            display_name="Direct Inversion",
            category=CATEGORY,
            description=(
                "Corrects each sampling step so that the inverted photo comes out exactly, at any prompt and cfg, "
                "with no optimisation: everywhere, or outside of what you edit. In a batch the first pictures are "
                "corrected; the others can look at them (Prompt-to-Prompt Guider). For euler and ddim with the sigmas "
                "of the inversion."
            ),
            search_aliases=[
                "pnp inversion",
                "direct inversion",
                "edit photo",
                "reconstruction",
                "diffedit",
                "keep background",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that the photo was inverted with."),
                TrajectorySocket.Input("trajectory", tooltip="From Invert; ddim at cfg 1 is enough."),
                switch(
                    "auto_mask",
                    False,
                    "Keep the photo only where the edit changes nothing; found by comparing the model's estimates "
                    "for the source prompt and the edited prompt. With the Text Guidance Guider.",
                ),
                tolerant(
                    io.Float.Input,
                    "auto_mask_threshold",
                    default=0.4,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="For auto_mask: how strong a change must be, of the strongest, to count as the edit. Lower "
                    "frees more of the picture.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the photo stays: white stays, black is free for the prompt. Not connected: "
                    "everywhere.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="For a KSampler or any guider, with the noise of Invert."
                )
            ],
        )

    @classmethod
    def execute(cls, model, trajectory, auto_mask=False, auto_mask_threshold=0.4, mask=None) -> io.NodeOutput:
        """Check the mask, then patch the model."""
        photo = interpolate(trajectory.latents[0].to("meta"), scale_factor=PIXELS_PER_CELL)
        region = checks.mask(mask, photo, "mask", "the photo")
        threshold = auto_mask_threshold if auto_mask else None
        return io.NodeOutput(keep_source(model, trajectory, Kept(region, threshold)))


NODES = [Invert, BELMSampler, DirectInversion]
