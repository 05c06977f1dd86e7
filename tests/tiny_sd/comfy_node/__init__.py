"""Teaches ComfyUI the demo model's size, so that its own CheckpointLoaderSimple loads `tiny_sd.safetensors`.

The model is an ordinary Stable-Diffusion-1 checkpoint in small; only the widths differ. Nothing else is changed.
"""

from __future__ import annotations

import copy

import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
from comfy_api.latest import ComfyExtension

from .config import TEXT, UNET


class TinyClip(comfy.sd1_clip.SDClipModel):
    """SD1's text transformer with the demo model's widths."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=copy.deepcopy(TEXT),
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class TinyTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SD1's own tokenizer; embeddings from disk have the demo model's width."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
        self.clip_l.embedding_size = TEXT["hidden_size"]


class TinyClipModel(comfy.sd1_clip.SD1ClipModel):
    """The CLIP slot of the checkpoint: `clip_l` is the small transformer."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=TinyClip)


class TinySD(comfy.supported_models.SD15):
    """SD 1.5 with 64 model channels and 64-wide text features."""

    unet_config = {
        **comfy.supported_models.SD15.unet_config,
        "model_channels": 64,
        "context_dim": TEXT["hidden_size"],
    }
    unet_extra_config = {"num_heads": UNET["num_heads"], "num_head_channels": -1}

    def clip_target(self, state_dict=None):
        """Return the tokenizer and text model classes for this checkpoint."""
        return comfy.supported_models_base.ClipTarget(TinyTokenizer, TinyClipModel)


def register() -> None:
    """Put the configuration in front of the host's list, once."""
    models = comfy.supported_models.models
    if not any(model.__name__ == "TinySD" for model in models):
        models.insert(0, TinySD)


class TinySDExtension(ComfyExtension):
    """An extension without nodes: importing it registers the model."""

    async def get_node_list(self):
        """Return no nodes."""
        return []


async def comfy_entrypoint() -> TinySDExtension:
    """Return the (empty) extension that the host expects of a custom node folder."""
    return TinySDExtension()


register()
