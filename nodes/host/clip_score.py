"""CLIPScore with the host's CLIP_VISION and CLIP: the cosine of projected features of one and the same CLIP model.

CLIPScore: A Reference-free Evaluation Metric for Image Captioning (arXiv 2104.08718), scaled as in torchmetrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import comfy.clip_model
import comfy.model_management
import torch
from torch import Tensor

from ...guidance.metrics import cosine_score

WIDTHS = "CLIP ViT-L (SD 1.x, Flux) has 768 numbers, ViT-H (SD 2.x) 1024, ViT-bigG (SDXL) 1280"
# a row of a trained projection measures about 1; memory that nothing was loaded into is mostly zero or far away
PLAUSIBLE = (0.02, 1e5)
NO_IMAGE_SIDE = (
    "clip_vision does not end in CLIP's image projection (it is another kind of vision model, or its file lacks that "
    "layer), so there is no CLIPScore. Load the complete vision model of your CLIP with Load CLIP Vision, or "
    "disconnect clip_vision, clip and text."
)
NO_TEXT_SIDE = (
    "clip has no text projection: the file it comes from lacks that layer, as checkpoints of SD 1.x do. So there is no "
    "CLIPScore. Load the text encoder's own file (such as clip_l.safetensors) with Load CLIP, or disconnect "
    "clip_vision, clip and text."
)


def clip_scores(images: Tensor, text: str, clip: Any, clip_vision: Any) -> Tensor:
    """Return 100 cos (B,) of RGB `images` (B, 3, H, W) in [0, 1] and `text`, as `clip_score_table` does."""
    return clip_score_table(images.split(1), [text], clip, clip_vision)[:, 0]


def clip_score_table(pictures: Iterable[Tensor], texts: Sequence[str], clip: Any, clip_vision: Any) -> Tensor:
    """Return 100 cos (P, T) of P RGB `pictures` (1, 3, H, W) in [0, 1] and T `texts`, float32 on the CPU.

    The pictures are scaled and cropped to the square that CLIP sees; of a long text the first 75 tokens count. Raises
    ValueError unless both sides end in the projections of one CLIP model, as far as their sizes and weights can tell.
    """
    projection = getattr(clip_vision.model, "visual_projection", None)
    _check_projection(projection, NO_IMAGE_SIDE)
    words = torch.cat([_text_features(clip, text, len(projection.weight)) for text in texts])
    return torch.stack([cosine_score(_image_features(clip_vision, one), words) for one in pictures])


def _image_features(clip_vision: Any, image: Tensor) -> Tensor:
    comfy.model_management.throw_exception_if_processing_interrupted()
    return clip_vision.encode_image(image.movedim(1, -1))["image_embeds"].cpu()


def _text_features(clip: Any, text: str, width: int) -> Tensor:
    """Return the projected features (1, `width`) of `text`, by that text encoder of CLIP that has so many."""
    encoder, key = _encoder(clip, width)
    _check_projection(encoder.transformer.text_projection, NO_TEXT_SIDE)
    comfy.model_management.load_model_gpu(clip.patcher)
    encoder.reset_clip_options()
    encoder.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        return encoder.encode_token_weights(clip.tokenize(text, disable_weights=True)[key])[1].cpu()
    finally:
        encoder.reset_clip_options()


def _encoder(clip: Any, width: int) -> tuple[Any, str]:
    """Return the CLIP text encoder with features of `width` numbers and its tokens' key; CLIP may hold a T5 too."""
    found = {}
    for name, module in clip.cond_stage_model.named_children():
        if isinstance(getattr(module, "transformer", None), comfy.clip_model.CLIPTextModel):
            found[len(module.transformer.text_projection.weight)] = module, name.removeprefix("clip_")
    if width not in found:
        has = " and ".join(f"text features of {size} numbers" for size in found) or "no CLIP text encoder"
        raise ValueError(
            f"CLIPScore needs both halves of one CLIP model, but clip_vision has image features of {width} numbers "
            f"and clip has {has}. {WIDTHS}: connect a clip and a clip_vision of the same."
        )
    return found[width]


def _check_projection(layer: Any, sentence: str) -> None:
    """Raise ValueError unless `layer` is a linear layer whose weights have been loaded.

    The host leaves a layer that its file lacks as zeros, or as whatever was in memory.
    """
    weight = getattr(layer, "weight", None)
    size = 0.0 if weight is None else weight.detach().float().norm(dim=1).median().item()
    if not PLAUSIBLE[0] < size < PLAUSIBLE[1]:
        raise ValueError(sentence)
