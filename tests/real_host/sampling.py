"""Small sampling runs on the real host, as its KSampler node does them; shared by the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiny_sd.world import draw, make_spec, stroke_painting

SEED, STEPS = 11, 8


def scene_painting(seed: int = 3) -> tuple[Tensor, str]:
    """Return a painting as IMAGE (1, 128, 128, 3) and the caption of the scene behind it."""
    spec = make_spec(seed, things=1)
    return torch.from_numpy(stroke_painting(draw(spec).image)).float()[None] / 255, spec.caption


def conditioning(clip: Any, text: str) -> list:
    """Return CONDITIONING of `text`."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def empty_latent(height: int = 128, width: int = 128, batch: int = 1) -> dict[str, Tensor]:
    """Return LATENT for pictures of `height` x `width` px."""
    return {"samples": torch.zeros(batch, 4, height // 8, width // 8)}


def sample(
    host: Any, model: Any, clip: Any, text: str = "a photo of a fox", latent: dict | None = None, **widgets
):
    """Run the host's KSampler and return the latents (B, 4, h, w)."""
    settings = {
        "seed": SEED,
        "steps": STEPS,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
    } | widgets
    positive, negative = settings.pop("positive", None), conditioning(clip, "")
    with torch.inference_mode():
        out = host.nodes.common_ksampler(
            model,
            positive=positive or conditioning(clip, text),
            negative=negative,
            latent=latent or empty_latent(),
            **settings,
        )
    return out[0]["samples"]
