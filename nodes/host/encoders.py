"""Pictures into latents of the model's space, by the VAE and without gradients, also in the midst of a sampling run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import gradients


class Encoder:
    """The VAE of a model as a function from RGB to latents; loads it when called, beside the sampled model."""

    def __init__(self, vae: Any, model: Any) -> None:
        """Take `vae` (VAE) and the `model` (MODEL) whose latents it makes."""
        self._vae, self._to_model, self.calls = vae, model.model.process_latent_in, 0
        self.pixels_per_cell: int = vae.downscale_ratio

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return latents (B, C, h, w), float32, of `pictures` (B, 3, H, W) in [0, 1]; H and W in whole cells."""
        vae, self.calls = self._vae, self.calls + 1
        memory = pictures.shape[0] * vae.memory_used_encode(pictures.shape, vae.vae_dtype)
        gradients.load([vae.patcher], memory, getattr(vae, "disable_offload", False))
        with gradients.differentiable(), torch.no_grad():
            return self._to_model(gradients.encode(vae, pictures)).to(pictures.device)
