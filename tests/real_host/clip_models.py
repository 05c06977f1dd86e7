"""A small CLIP for tests: that of transformers, and its two halves as the host loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WIDTH, SIDE = 24, 32  # numbers of a CLIP feature, px of the pictures that the small CLIP sees


def small_clip() -> Any:
    """Return a CLIP of transformers with random weights: what the paper's numbers are made with, in small."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(5)
    shape = {
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
    }
    text = shape | {"hidden_size": WIDTH, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    vision = shape | {"hidden_size": 32, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).eval()
    for weight in model.parameters():  # random ones of transformers are so small that all features agree
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    model.visual_projection.weight.data.neg_()  # with this seed that makes the scores positive
    return model


def vision_of(clip_model: Any, folder: Path, **changes: Any) -> Any:
    """Return CLIP_VISION of the host with the weights of `clip_model`; `folder` gets its configuration."""
    import comfy.clip_vision

    sides = clip_model.config.vision_config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
    config = {name: getattr(sides, name) for name in (*names, "image_size", "patch_size")}
    config |= {"model_type": "clip_vision_model", "num_channels": 3, "projection_dim": WIDTH} | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("comfy.model_management.text_encoder_dtype", lambda device=None: torch.float32)
        made = comfy.clip_vision.ClipVisionModel(str(folder / "config.json"))
        made.load_sd(clip_model.state_dict())
    return made


def clip_of(clip_model: Any, keep: Callable[[str], bool] = lambda key: True) -> Any:
    """Return CLIP of the host with those weights of `clip_model` that `keep` wants, as an SD 1.x text encoder."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    sides = clip_model.config.text_config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
    config = {name: getattr(sides, name) for name in names}
    config |= {"max_position_embeddings": 77, "eos_token_id": 49407, "vocab_size": 49408}

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(config),
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class Model(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, dtype=dtype, model_options=model_options or {}, clip_model=Encoder
            )

    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, Model)
    with torch.inference_mode():
        made = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
        state = {key: value for key, value in clip_model.state_dict().items() if key.startswith("text_")}
        made.cond_stage_model.clip_l.transformer.text_projection.weight.data.zero_()  # as fresh memory mostly is
        made.load_sd({key: value for key, value in state.items() if keep(key)})
    return made
