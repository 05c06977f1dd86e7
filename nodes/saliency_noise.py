"""Saliency Noise: noise that knows where the object stands, made from a picture and a classifier.

On Conditioning the Input Noise for Controlled Image Generation with Diffusion Models (arXiv 2205.03859).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from ..guidance.gradient_matching import LAYERS
from ..guidance.inverting import Descent
from .host import checks
from .host.classifiers import Classifier
from .host.decoders import DECODERS, check_decoder
from .host.first_estimate import check_guider
from .host.noises import StructuredNoise
from .host.plots import noise_plot
from .host.saliency import (
    SPACES,
    Matching,
    Scene,
    Structure,
    from_features,
    from_gradients,
    from_saliency,
    from_sign,
    saliency_mask,
    shown,
    start_of_sampling,
    with_contrast,
)
from .host.sampling import Progress
from .host.schema import tolerant
from .host.sockets import ClassifierSocket
from .host.widgets import switch

GRADIENTS, FEATURES, FGSM, SALIENCY = SOURCES = ("gradient inversion", "feature map", "FGSM", "saliency")
PREDICTED = "predicted"
COSINE, DROPS = SCHEDULES = ("cosine", "drops")
LISTED = 3  # labels that the node's text names
FROM_MEMORY = "The inversion is that of the latest run, from memory: nothing that it depends on has changed."


class SaliencyNoise(io.ComfyNode):
    """Noise of the statistics of white noise, with the structure that a classifier sees in a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_SaliencyNoise",
            display_name="Saliency Noise",
            category="guided synthesis/noise",
            description=(
                "Turns a picture into the noise that sampling starts from: the noise carries where the object "
                "stands, so that another prompt puts its own object there. Connect the guider that samples, too."
            ),
            search_aliases=[
                "object saliency noise",
                "structured noise",
                "initial noise",
                "composition",
                "layout",
                "gradient inversion",
                "fgsm",
            ],
            inputs=[*_inputs(), *_fine_inputs(), *_last_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        classifier,
        reference,
        label,
        seed,
        source,
        steps,
        learning_rate,
        signed,
        schedule,
        total_variation,
        layers,
        space,
        decoder,
        blend,
        width,
        height,
        latent=None,
        guider=None,
    ) -> io.NodeOutput:
        """Check everything, find the structure, and blend it with fresh noise."""
        checks.image_latent(model)
        cell = check_decoder(decoder, vae, model)
        if guider is not None:
            check_guider(guider, vae.latent_channels)
        descent = Descent(steps, learning_rate, signed, total_variation, schedule == COSINE)
        _check_values(descent, blend)
        picture = _one_picture(reference)
        asked = _asked(picture, width, height, cell) if latent is None else _size_of(latent, cell)
        index, about = _labelled(classifier, picture, label)
        scene = Scene(model, vae, classifier, _fitted(picture, asked, cell), index, decoder)
        if guider is not None:
            scene.check_salient()
        found = _structure(source, scene, Matching(descent, layers, space, seed))
        if guider is not None:
            found = with_contrast(found, scene, guider, seed)
        noise = StructuredNoise(found.noise, seed, blend)
        return io.NodeOutput(
            noise,
            _start(model, noise, latent, scene.shape),
            shown(found.frames, model, vae),
            saliency_mask(classifier, picture, index),
            ui=_preview(cls, noise, scene.shape, [*about, *_matched(found, steps)]),
        )


def _check_values(descent: Descent, blend: float) -> None:
    """Raise ValueError for values that a linked input may bring."""
    if descent.steps < 1:
        raise ValueError(f"steps is {descent.steps}; choose 1 or more, 800 for example.")
    if descent.learning_rate <= 0:
        raise ValueError(f"learning_rate is {descent.learning_rate:g}; choose more than 0, 0.1 for example.")
    if descent.total_variation < 0:
        raise ValueError(
            f"total_variation is {descent.total_variation:g}; it is a weight, so choose 0 or more."
        )
    if not 0 <= blend <= 1:
        raise ValueError(
            f"blend is {blend:g}; it is the share of fresh noise, from 0 (none) to 1 (nothing else)."
        )


def _one_picture(reference: Tensor) -> Tensor:
    """Return the reference (1, 3, H, W) in [0, 1]."""
    picture = checks.picture(reference, "reference")
    if len(picture) != 1:
        raise ValueError(
            f"reference is a batch of {len(picture)} pictures, but noise is made of one. Choose one with Image From "
            "Batch."
        )
    return picture.clamp(0, 1)


def _asked(picture: Tensor, width: int, height: int, cell: int) -> tuple[int, int] | None:
    """Return height and width, of which one that is 0 follows from the other; None if both are."""
    for name, side in (("width", width), ("height", height)):
        if side < 0 or side % cell:
            raise ValueError(
                f"{name} is {side}, but this VAE works in cells of {cell} px. Choose {_whole(side, cell)}, "
                "or 0 for the reference's own size."
            )
    if not (width or height):
        return None
    h, w = picture.shape[-2:]
    return height or _whole(width * h / w, cell), width or _whole(height * w / h, cell)


def _whole(side: float, cell: int) -> int:
    return max(1, round(side / cell)) * cell


def _size_of(latent: dict[str, Any], cell: int) -> tuple[int, int]:
    """Return height and width of the picture that LATENT is of."""
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4:
        raise ValueError(
            "latent is not that of a picture (batch, channels, height, width). Connect Empty Latent Image, or VAE "
            "Encode."
        )
    # newer hosts say for which VAE an empty latent was made, and change its size when it is sampled
    scale = latent.get("downscale_ratio_spacial") or cell
    height, width = (side * scale // cell * cell for side in samples.shape[-2:])
    return height, width


def _fitted(picture: Tensor, size: tuple[int, int] | None, cell: int) -> Tensor:
    """Return `picture` (1, 3, H, W) of `size`, height and width; without one, cropped to whole cells."""
    h, w = picture.shape[-2:]
    if size is None and min(h, w) >= cell:
        return center_crop(picture, [h // cell * cell, w // cell * cell])
    if size is None:
        raise ValueError(
            f"reference is {w}x{h} px, smaller than one latent cell of {cell} px. Scale it up, to 512x512 px for "
            "example."
        )
    checks.same_shape(picture, *size, "reference", "the noise")
    return resize(picture, list(size), antialias=True).clamp(0, 1)


def _labelled(classifier: Classifier, picture: Tensor, label: str) -> tuple[int, list[str]]:
    """Return the number of the label, and what there is to say about it."""
    seen = classifier.predicted(picture, len(classifier.labels))[0]
    best = ", ".join(f"{name} {chance:.1%}" for name, chance in seen[:LISTED])
    wanted = seen[0][0] if label.strip().lower() == PREDICTED else label
    index = classifier.index(wanted)
    name = classifier.labels[index]
    said = [f"Label: {name}. {classifier.name} sees in the reference: {best}."]
    if name != seen[0][0]:
        warning = (
            f"The label {name} ({dict(seen)[name]:.1%}) is not what {classifier.name} sees in the reference: that is "
            f"{seen[0][0]} ({seen[0][1]:.1%}). The noise may show where there is none of it; set label to {PREDICTED}."
        )
        logging.warning("Guided Synthesis: %s", warning)
        said.append(warning)
    return index, said


def _structure(source: str, scene: Scene, matching: Matching) -> Structure:
    if source == FEATURES:
        return from_features(scene)
    if source == FGSM:
        return from_sign(scene)
    if source == SALIENCY:
        return from_saliency(scene)
    steps = matching.descent.steps
    return from_gradients(scene, matching, Progress(scene.model, steps).phase(steps))


def _matched(found: Structure, steps: int) -> list[str]:
    if found.cosines is None:
        return []
    before, after = found.cosines
    said = (
        f"Cosine of the gradients with the reference's: {before:.3f} before, {after:.3f} after {steps} steps."
    )
    return [said, *([FROM_MEMORY] if found.remembered else [])]


def _start(model: Any, noise: StructuredNoise, latent: dict | None, shape: tuple[int, ...]) -> Any:
    """Return LATENT that has the noise in it, for as many pictures as `latent` has."""
    kept = {key: value for key, value in (latent or {}).items() if key != "noise_mask"}
    count = 1 if latent is None else len(latent["samples"])
    made = noise.generate_noise({**kept, "samples": torch.zeros(count, *shape[1:])})
    samples = start_of_sampling(model, made)
    return {**kept, "samples": samples} if isinstance(samples, Tensor) else samples


def _preview(
    cls: type[io.ComfyNode], noise: StructuredNoise, shape: tuple[int, ...], said: list[str]
) -> dict[str, Any]:
    """Return how far the noise is from white noise, drawn, and what was `said`."""
    plot = noise_plot(noise.generate_noise({"samples": torch.zeros(shape)}))
    return ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText("\n".join(said)).as_dict()


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that the noise is for. It is not changed."),
        io.Vae.Input("vae", tooltip="The VAE of this model: through it the classifier sees the latent."),
        ClassifierSocket.Input(
            "classifier", tooltip="What looks at the reference and at the noise, from Load Classifier."
        ),
        io.Image.Input(
            "reference",
            tooltip="The picture whose object stands where you want yours. One picture, best with a single object "
            "that the classifier knows.",
        ),
        io.String.Input(
            "label",
            default=PREDICTED,
            tooltip="What stands in the reference: the name of a label of the classifier, or its number. predicted: "
            "what the classifier sees there.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the noise that is blended in (a KSampler with this seed makes the same) and of that which the "
            "inversion starts from.",
        ),
        io.Combo.Input(
            "source",
            options=list(SOURCES),
            default=SALIENCY,
            tooltip="saliency: where the classifier sees the label, at once. feature map: where its features are "
            "strong, at once. FGSM: the sign of one gradient, at once. gradient inversion: the paper's, many steps.",
        ),
        io.Int.Input(
            "steps",
            default=Descent.steps,
            min=1,
            max=20000,
            tooltip="gradient inversion: how many steps. More bring out more of the reference. The paper: 1000 to "
            "5000, with signed on and the schedule drops.",
        ),
    ]


def _fine_inputs() -> list[io.Input]:
    return [
        tolerant(
            io.Float.Input,
            "learning_rate",
            default=Descent.learning_rate,
            min=0.0001,
            max=10.0,
            step=0.001,
            round=0.0000001,
            advanced=True,
            tooltip="gradient inversion: size of the first steps. The paper: 0.1.",
        ),
        switch(
            "signed",
            Descent.signed,
            "gradient inversion: use only the sign of the gradient, as the paper and Inverting Gradients do.",
        ),
        _choice(
            "schedule",
            SCHEDULES,
            "gradient inversion: how the learning rate falls. cosine: steadily; not signed it gets as close in a sixth "
            "of the steps. drops: to a tenth after 3/8, 5/8 and 7/8 of the steps, as in Inverting Gradients.",
        ),
        tolerant(
            io.Float.Input,
            "total_variation",
            default=Descent.total_variation,
            min=0.0,
            max=10.0,
            step=0.0001,
            round=0.0000001,
            advanced=True,
            tooltip="gradient inversion: how much a smooth picture is preferred.",
        ),
        _choice(
            "layers",
            LAYERS,
            "gradient inversion: whose gradients are matched. last stages: the last third of the classifier.",
        ),
        _choice(
            "space",
            SPACES,
            "gradient inversion: what is optimised. latent: the noise itself, seen through the decoder. pixels: a "
            "picture, which the VAE encodes at the end, as near to the paper as a latent model comes.",
        ),
        _choice(
            "decoder",
            DECODERS,
            "How the classifier sees a latent (space latent, and FGSM): vae is exact and heavy, taesd light (needs "
            "its file), linear almost free and blurred.",
        ),
    ]


def _choice(name: str, options: tuple[str, ...], tooltip: str) -> io.Input:
    return tolerant(
        io.Combo.Input, name, options=list(options), default=options[0], advanced=True, tooltip=tooltip
    )


def _last_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "blend",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of fresh noise. 0: the structure alone. 1: the plain noise of the seed, to the bit. More "
            "of it gives better pictures, less of it obeys the reference more.",
        ),
        _side("width"),
        _side("height"),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="The latent that you will sample, empty or not: the noise gets its size, and the output latent as "
            "many pictures, each with fresh noise of its own. It wins over width and height.",
        ),
        io.Guider.Input(
            "guider",
            optional=True,
            tooltip="The guider that will sample (CFGGuider, ...): the structure takes the contrast of what its prompt "
            "paints, which costs one model call for four pictures. Without it: the structure as it is made, as in the "
            "paper.",
        ),
    ]


def _side(name: str) -> io.Input:
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=16384,
        step=8,
        tooltip=f"The {name} of the picture to be made, in px: a multiple of the VAE's cell (8 px). 0: as the other "
        "side says; both 0: the reference's own size. Not used if latent is connected.",
    )


def _outputs() -> list[io.Output]:
    return [
        io.Noise.Output(
            display_name="noise", tooltip="For SamplerCustomAdvanced, with a latent of its size."
        ),
        io.Latent.Output(
            display_name="latent",
            tooltip="The same noise as a latent: for KSampler (Advanced) with add_noise disabled, from the first step "
            "on. Not for flow models (SD 3, Flux): they need noise.",
        ),
        io.Image.Output(
            display_name="progression",
            tooltip="The structure as it forms, at eight moments, without fresh noise, through the VAE.",
        ),
        io.Mask.Output(
            display_name="saliency",
            tooltip="Where in the reference the classifier sees the label (Grad-CAM), of the reference's size.",
        ),
    ]


NODES = [SaliencyNoise]
