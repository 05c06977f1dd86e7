"""Image Metrics: PSNR, SSIM and LPIPS of pictures against a reference, and CLIPScore against a text.

LPIPS: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (arXiv 1801.03924).
CLIPScore: A Reference-free Evaluation Metric for Image Captioning (arXiv 2104.08718), scaled as in torchmetrics.
"""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.metrics import paired
from .host import checks
from .host.clip_score import clip_scores
from .host.perceptual import BACKBONES
from .host.schema import tolerant
from .host.scores import LPIPS, METRICS, PSNR, SSIM, scores

CLIP_SCORE = "CLIPScore"
FORMATS = {PSNR: "{:.2f} dB", SSIM: "{:.4f}", LPIPS: "{:.4f}", CLIP_SCORE: "{:.2f}"}


class ImageMetrics(io.ComfyNode):
    """IMAGE and reference -> PSNR, SSIM, LPIPS and, with a CLIP model, CLIPScore: FLOATs, and a table."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_ImageMetrics",
            display_name="Image Metrics",
            category="guided synthesis/guidance",
            description=(
                "Measures how close pictures are to a reference (PSNR, SSIM, LPIPS), everywhere or inside a mask, and "
                "how well they fit a text (CLIPScore). Shows a line for each picture."
            ),
            search_aliases=["psnr", "ssim", "lpips", "clip score", "compare", "difference", "quality"],
            inputs=_inputs(),
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images, reference, net, mask=None, clip_vision=None, clip=None, text=""
    ) -> io.NodeOutput:
        """Check everything, measure, and show the table."""
        pictures = checks.picture(images, "images")
        pair = paired(pictures, checks.picture(reference, "reference"), mask)
        with_clip = _clip_wanted(clip_vision, clip, text)
        found = scores(pair, METRICS, net)
        if with_clip:
            found[CLIP_SCORE] = clip_scores(pair.pictures, text, clip, clip_vision)
        means = {name: values.mean().item() for name, values in found.items()}
        means[CLIP_SCORE] = max(means[CLIP_SCORE], 0.0) if with_clip else math.nan
        text = "\n".join([*_headlines(net, pair.weight), *_lines(found, means)])
        return io.NodeOutput(*means.values(), ui=ui.PreviewText(text))


def _clip_wanted(clip_vision: Any, clip: Any, text: str) -> bool:
    """Tell whether CLIPScore is asked for; raise ValueError if something for it is missing."""
    given = {
        "clip_vision": clip_vision is not None,
        "clip": clip is not None,
        "text": bool((text or "").strip()),
    }
    missing = [name for name, there in given.items() if not there]
    if missing and (given["clip_vision"] or given["clip"]):
        raise ValueError(
            f"CLIPScore needs clip_vision, clip and text, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Connect all three, or neither clip_vision nor clip."
        )
    return not missing


def _headlines(net: str, weight: Tensor | None) -> list[str]:
    """Return what has to be known to read the numbers: the network, and how much the mask covers."""
    lines = [f"LPIPS by {net}"]
    if weight is not None:
        lines.append(f"measured inside the mask: {weight.mean().item():.1%} of the picture")
    return lines


def _lines(found: dict[str, Tensor], means: dict[str, float]) -> list[str]:
    """Return a line for each picture and one for the mean."""
    count = len(found[PSNR])
    rows = {
        f"picture {i + 1}": {name: values[i].item() for name, values in found.items()} for i in range(count)
    }
    rows[f"mean of {count}"] = {name: means[name] for name in found}
    return [
        f"{title}: {', '.join(_shown(name, value) for name, value in row.items())}"
        for title, row in rows.items()
    ]


def _shown(name: str, value: float) -> str:
    if name == CLIP_SCORE:
        value = max(value, 0.0)
    return f"{name} {FORMATS[name].format(value)}" + (" (equal)" if value == math.inf else "")


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("images", tooltip="The pictures to measure."),
        io.Image.Input(
            "reference",
            tooltip="What they should look like: one picture for all, or one for each. Same size; nothing is resized.",
        ),
        io.Combo.Input(
            "net",
            options=list(BACKBONES),
            default="alex",
            tooltip="The network of LPIPS. alex: what papers report. vgg: what perceptual guidance lowers. squeeze: "
            "the smallest. Numbers of two networks cannot be compared.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the reference counts: white fully, grey less, black not at all. One, or one for each. "
            "CLIPScore always sees the whole picture.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="For CLIPScore: the vision half of a CLIP model (Load CLIP Vision).",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="For CLIPScore: the text half of the same CLIP model. ViT-L: clip_l with Load CLIP; ViT-H: SD 2.x; "
            "ViT-bigG: SDXL.",
        ),
        io.String.Input(
            "text",
            default="",
            multiline=True,
            optional=True,
            tooltip="For CLIPScore: what the pictures should show, in up to 75 tokens.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(
            display_name="PSNR",
            tooltip="Pixel by pixel, in dB: higher is closer, inf is equal. Mean over the pictures.",
        ),
        io.Float.Output(
            display_name="SSIM",
            tooltip="Structure in windows of 11 px: 1 is equal, 0 unrelated. Mean over the pictures.",
        ),
        io.Float.Output(
            display_name="LPIPS",
            tooltip="How different they look: 0 is equal, below 0.1 close, above 0.5 another picture. Mean over the "
            "pictures.",
        ),
        io.Float.Output(
            display_name="CLIPScore",
            tooltip="How well the pictures fit the text, 0 to 100 (photographs and their captions: about 25 to 30). "
            "nan if clip_vision and clip are not connected.",
        ),
    ]


NODES = [ImageMetrics]
