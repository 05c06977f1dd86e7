"""Attention maps to look at and to use: Attention Recorder, Attention Map View.

What the DAAM: Interpreting Stable Diffusion Using Cross Attention (arXiv 2210.04885), see attention/record.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..attention.record import Recording
from ..attention.words import Prompt
from .host import checks
from .host.attention_explorer import GROUND, MAP, explorer_ui
from .host.attention_hook import check_unet
from .host.recording import AttentionMaps
from .host.restarts import check_interrupt
from .host.schema import tolerant
from .host.sockets import AttentionMapsSocket, PromptSocket
from .host.widgets import heavy_at_scale_1, scale_switches, scales_on

CATEGORY = "guided synthesis/attention"
COLOURS = "inferno"
PIXELS_PER_CELL = 8
RECORDED = (2, 4)  # scales recorded unless asked otherwise; scale 1 takes four times the memory of scale 2
THRESHOLD = 0.3  # by the benchmark attention_maps, chosen on other scenes than it reports


class AttentionRecorder(io.ComfyNode):
    """MODEL patch that changes nothing and keeps the attention maps of a prompt's words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_AttentionRecorder",
            display_name="Attention Recorder",
            category=CATEGORY,
            description=(
                "Records where each word of the prompt looked while the picture was made; the picture itself stays "
                "identical to the bit. Look at the maps with the Attention Map View."
            ),
            search_aliases=["daam", "attention map", "heat map", "explain", "cross attention"],
            inputs=[
                io.Model.Input("model", tooltip="SD 1.x, SD 2.x or SDXL."),
                PromptSocket.Input(
                    "prompt",
                    tooltip="From the Prompt with Words node that also makes the positive conditioning.",
                ),
                *scale_switches(RECORDED, heavy_at_scale_1("Record layers whose tokens are")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for any sampler."),
                AttentionMapsSocket.Output(
                    display_name="attention_maps",
                    tooltip="For the Attention Map View, once the sampler has run.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, prompt, **layers) -> io.NodeOutput:
        """Check the model and attach a recorder."""
        check_unet(model)
        if not prompt.words:
            raise ValueError("prompt has no words to record. Write some into its Prompt with Words node.")
        maps = AttentionMaps(prompt, scales_on(layers))
        return io.NodeOutput(maps.attach(model), maps)


class AttentionMapView(io.ComfyNode):
    """Shows recorded attention maps of words as pictures and as masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_AttentionMapView",
            display_name="Attention Map View",
            category=CATEGORY,
            description=(
                "Shows where words looked, as heat maps and as masks. The mask finds an object without drawing: for "
                "inpainting, for Attention Region, for anything that takes a mask. In the node, point at a word to see "
                "its map."
            ),
            search_aliases=["daam", "attention map", "heat map", "word to mask", "segment"],
            inputs=[
                AttentionMapsSocket.Input("attention_maps", tooltip="From the Attention Recorder."),
                io.Latent.Input(
                    "latent",
                    tooltip="The output of the sampler that ran with the recorder's model: it tells which run to show.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip=(
                        "A word or phrase of the prompt; several, separated by commas, give a picture each. fox#2 is "
                        "the second fox only. Empty: all words."
                    ),
                ),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "The mask is where the map reaches this share of its largest value; 0 gives the soft map."
                    ),
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The decoded picture, to lay the heat maps over."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="Heat maps: for each picture one of each word, dark to bright.",
                ),
                io.Mask.Output(display_name="mask", tooltip="The same as masks."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, attention_maps, latent, words, threshold, image=None) -> io.NodeOutput:
        """Find the run, draw its maps, and give the browser those of all words."""
        prompt, recording = attention_maps.prompt, attention_maps.of(latent["samples"])
        heat = _heat(prompt, recording, words)  # (B, words, h, w)
        pictures, count = heat.shape[:2]
        picture = None if image is None else _pictures(image, pictures)
        size = [s * PIXELS_PER_CELL for s in heat.shape[-2:]] if picture is None else picture.shape[-2:]
        heat = _enlarged(heat, size)
        shown = _shown(heat, None if picture is None else picture.repeat_interleave(count, 0))
        mask = (heat >= threshold).float() if threshold > 0 else heat
        return io.NodeOutput(shown, mask, ui=_explorer(prompt, recording, size, picture))


def _explorer(
    prompt: Prompt, recording: Recording, size: Sequence[int], picture: Tensor | None
) -> dict[str, Any]:
    """Return the `ui` that shows every word's map over the first of `picture` (B, 3, H, W), or over `size` px of grey.

    The maps are square; the browser draws them at the picture's shape.
    """
    maps = _coloured(_enlarged(_heat(prompt, recording, "", 1), [MAP, MAP])).movedim(-1, 1)
    ground = torch.full((3, *size), GROUND) if picture is None else picture[0]
    return explorer_ui([word.text for word in prompt.words], maps, ground)


def _heat(prompt: Prompt, recording: Recording, words: str, pictures: int | None = None) -> Tensor:
    """Return the maps of the queries in `words`, or of every word: (B, queries, h, w).

    Of the first `pictures` only, if that is given. Raises the host's interrupt.
    """
    queries = [query for query in words.replace("\n", ",").split(",") if query.strip()]
    spans = [prompt.find(query) for query in queries] or [word.tokens for word in prompt.words]
    maps = []
    for span in spans:
        check_interrupt()
        maps.append(recording.heat(span, pictures))
    return torch.cat(maps, 1)


def _pictures(image: Tensor, count: int) -> Tensor:
    """Return IMAGE as (B, 3, H, W); raise ValueError unless B is `count`."""
    found = checks.picture(image, "image").cpu()
    if len(found) != count:
        raise ValueError(
            f"The input image has {len(found)} pictures, but {count} were sampled. Connect the decoded pictures of the "
            "same latent; of a Prompt-to-Prompt Guider's, the half of this prompt (Image From Batch)."
        )
    return found


def _enlarged(heat: Tensor, size: Sequence[int]) -> Tensor:
    """Return `heat` (B, words, h, w) as (B * words, *size), the largest value of each map 1."""
    large = interpolate(heat, list(size), mode="bicubic").clamp(min=0).flatten(0, 1)
    return large / large.amax((1, 2), keepdim=True).clamp(min=torch.finfo(large.dtype).tiny)


def _shown(heat: Tensor, picture: Tensor | None) -> Tensor:
    """Return `heat` (B, H, W) in [0, 1] as IMAGE, half of it over `picture` (B, 3, H, W) if there is one."""
    coloured = _coloured(heat)
    return coloured if picture is None else (coloured + picture.movedim(1, -1)) / 2


def _coloured(heat: Tensor) -> Tensor:
    """Return `heat` (B, H, W) in [0, 1] as IMAGE, dark to bright."""
    return torch.from_numpy(matplotlib.colormaps[COLOURS](heat.numpy())[..., :3]).float()


NODES = [AttentionRecorder, AttentionMapView]
