"""Perceptual Guidance: the picture is steered by LPIPS towards a reference, wherever it must stay as it was.

Perceptual Similarity guidance and text guidance optimization for Editing Real Images using Guided Diffusion Models
(arXiv 2312.06680), see guidance/perceptual.py.
"""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.painting import fitted
from ..guidance.perceptual import STEP_RULES
from .host import checks
from .host.decoders import DECODERS, check_decoder
from .host.perceptual import BACKBONES, check_lpips
from .host.perceptual_guidance import GRADIENTS, Settings, Wanted, guide_perceptually
from .host.schema import tolerant
from .host.widgets import PERCENT, switch

WHOLE = "The whole picture is compared with the reference: all of it must stay."
ALL_WHITE = "The mask is white everywhere: all of the picture must stay. Paint black what may change."
PART = (
    "{share:.0%} of the picture must stay (red in the preview); the rest is free. If it is the other way round, put "
    "Invert Mask before mask."
)
OFF = "Off: strength is 0."
AUTOMATIC = "auto_mask frees what the edit changes, too; it is found while sampling."
RED = 0.6  # how much of what must stay is red in the preview


class PerceptualGuidance(io.ComfyNode):
    """MODEL patch: at chosen steps the estimate takes a step down LPIPS to a reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_PerceptualGuidance",
            display_name="Perceptual Guidance (LPIPS)",
            category="guided synthesis/guidance",
            description=(
                "Keeps an edited picture like the original: while it is sampled, it is compared with the reference by "
                "LPIPS and moved towards it, where a mask says so. Put it between the checkpoint and any sampler."
            ),
            search_aliases=[
                "lpips",
                "perceptual",
                "similarity",
                "keep background",
                "dps",
                "edit",
                "preserve",
            ],
            inputs=_inputs(),
            outputs=[io.Model.Output(display_name="model", tooltip="The model, guided, for any sampler.")],
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
        reference,
        strength,
        start_percent,
        end_percent,
        every,
        net,
        decoder,
        gradient,
        step_rule,
        auto_mask,
        auto_mask_threshold,
        mask=None,
        source=None,
    ) -> io.NodeOutput:
        """Check everything, then return the guided model and show what must stay."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        checks.image_latent(model)
        pictures = checks.picture(reference, "reference").clamp(0, 1)
        region = checks.mask(mask, pictures, "mask", "the reference")
        check_decoder(decoder, vae, model)
        if strength == 0:
            return io.NodeOutput(model, ui=_told([OFF]))
        check_lpips(net)
        threshold = auto_mask_threshold if auto_mask else None
        settings = Settings(
            strength, start_percent, end_percent, every, net, decoder, gradient, step_rule, threshold
        )
        guided = guide_perceptually(model, Wanted(vae, pictures, region, source), settings)
        return io.NodeOutput(guided, ui=_preview(cls, pictures, region, auto_mask))


def _preview(cls: type[io.ComfyNode], pictures: Tensor, region: Tensor | None, automatic: bool) -> dict:
    """Return how much of the picture must stay, and the reference with that in red."""
    sentences = [_coverage(region)] + [AUTOMATIC] * automatic
    shown = _told(sentences)
    if region is None:
        return shown
    painted = pictures.expand(max(len(pictures), len(region)), -1, -1, -1).clone()
    red = RED * fitted(region, *pictures.shape[-2:]).clamp(0, 1)
    painted = painted * (1 - red) + red * painted.new_tensor([1.0, 0.0, 0.0])[:, None, None]
    return shown | ui.PreviewImage(painted.movedim(1, -1), cls=cls).as_dict()


def _told(sentences: list[str]) -> dict:
    return ui.PreviewText("\n".join(sentences)).as_dict()


def _coverage(region: Tensor | None) -> str:
    if region is None:
        return WHOLE
    return ALL_WHITE if bool((region >= 1).all()) else PART.format(share=region.mean().item())


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model to guide. LoRAs and other patches may come before."),
        io.Vae.Input("vae", tooltip="The VAE of this model: it makes the pictures that are compared."),
        io.Image.Input(
            "reference",
            tooltip="What the picture shall look like (RGB, same shape as the picture; it is resized): the photo that "
            "you edit. One, or one for each picture of the batch.",
        ),
        io.Float.Input(
            "strength",
            default=0.7,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="At 1 it pulls as hard as the prompt. Higher keeps more of the reference; too high copies it or "
            "breaks the picture. 0 switches it off.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            tooltip="When it begins: 0 is the first sampling step.",
            **PERCENT,
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            tooltip="When it ends. Earlier leaves details to the prompt.",
            **PERCENT,
        ),
        io.Int.Input(
            "every",
            default=1,
            min=1,
            max=100,
            tooltip="Guide only every n-th step of the range: 2 takes half the time and has about half the effect.",
        ),
        io.Combo.Input(
            "net",
            options=list(BACKBONES),
            default="alex",
            tooltip="The network that LPIPS looks with. alex: light. vgg: the usual one to optimise, many times "
            "slower. squeeze: in between. Its weights are downloaded once (alex 233 MB, vgg 528 MB, squeeze 5 MB).",
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default="linear",
            tooltip="How latents become a picture. linear: almost free, compares one px for each latent cell. taesd: "
            "details too, light, needs its file in models/vae_approx. vae: exact and heavy.",
        ),
        io.Combo.Input(
            "gradient",
            options=list(GRADIENTS),
            default=GRADIENTS[1],
            tooltip="through model: the gradient goes on through the model (DPS), so that objects move back to their "
            "place; steps take two to three times as long, and more memory. to x0: the estimate itself is moved, "
            "cheap; corrects colours and texture only.",
        ),
        io.Combo.Input(
            "step_rule",
            options=list(STEP_RULES),
            default=STEP_RULES[0],
            tooltip="How long a step is. norm ratio: in proportion to the pull of the prompt, so strength means the "
            "same for every model and size. rms clip: in proportion to the difference, up to a bound.",
        ),
        switch(
            "auto_mask",
            False,
            "Find out what the edit changes and leave it alone: the difference of the estimates with the source's and "
            "the edited prompt. Needs source, or the Text Guidance Guider.",
        ),
        tolerant(
            io.Float.Input,
            "auto_mask_threshold",
            default=0.3,
            min=0.01,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="For auto_mask: how strong a change must be, of the strongest, to count as the edit. Lower frees "
            "more of the picture.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="What must stay: white as it is, black is free. The preview shows it. Not connected: everything.",
        ),
        io.Conditioning.Input(
            "source",
            optional=True,
            tooltip="For auto_mask: the prompt that describes the reference. Takes one more model call a guided step; "
            "not needed with the Text Guidance Guider.",
        ),
    ]


NODES = [PerceptualGuidance]
