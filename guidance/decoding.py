"""Decoders: from latents to the colours that an objective compares. A loss never knows which one it got.

The linear decoder rests on an observation about SD-class latents: averaged over a latent cell, colour is nearly an
affine function of the cell's channels. Its map is fitted by least squares to one decode of the VAE in use.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


class Decoder(Protocol):
    """Turns latents (B, C, h, w) of the model's space into RGB (B, 3, h * scale, w * scale), float32, differentiable.

    The colours are nominally in [0, 1] and never clamped. `scale` is in px per latent cell, `cost` says in a sentence
    what a decode costs, `calls` counts the decodes done.
    """

    name: str
    cost: str
    scale: int
    calls: int

    def __call__(self, latent: Tensor) -> Tensor: ...


class LinearDecoder:
    """One affine map from latent channels to RGB for every cell: `rgb = latent @ weight + bias`, one px per cell."""

    name = "linear"
    cost = "Free: one small matrix product; shows colours, no details."
    scale = 1

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take `weight` (C, 3) and `bias` (3,)."""
        self.weight, self.bias, self.calls = weight, bias, 0

    def __call__(self, latent: Tensor) -> Tensor:
        """Return RGB (B, 3, h, w) of `latent` (B, C, h, w)."""
        self.calls += 1
        dtype = torch.promote_types(latent.dtype, torch.float32)
        weight, bias = self.weight.to(latent.device, dtype), self.bias.to(latent.device, dtype)
        return torch.einsum("bchw,cr->brhw", latent.to(dtype), weight) + bias[:, None, None]


def fit_linear(latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the affine map from `latents` (B, C, h, w) to the cell means of `pictures` (B, 3, H, W), H = h * scale.

    Returns `weight` (C, 3) and `bias` (3,), float32, on the CPU, solved there in float64 (not every GPU has it). Raises ValueError if the sizes do not fit.
    """
    scale = pictures.shape[-1] // latents.shape[-1]
    if pictures.shape[-2:] != (latents.shape[-2] * scale, latents.shape[-1] * scale):
        raise ValueError(
            f"The VAE made a picture of {tuple(pictures.shape[-2:])} px from a latent of {tuple(latents.shape[-2:])} "
            "cells; the linear decoder needs whole px per cell. Choose another decoder."
        )
    colours = avg_pool2d(pictures.cpu().double(), scale).movedim(1, -1).flatten(0, -2)  # (N, 3)
    cells = latents.cpu().double().movedim(1, -1).flatten(0, -2)  # (N, C)
    affine = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    solution = torch.linalg.lstsq(affine, colours).solution.float()
    return solution[:-1], solution[-1]


def colour_field(side: int, scale: int) -> Tensor:
    """Return a picture (1, 3, side, side) in [0, 1] of smooth random colours, each about four latent cells wide.

    Encoded and decoded once, it shows a VAE's whole range of colours: what `fit_linear` wants to see.
    """
    knots = side // (4 * scale)
    colours = torch.rand(1, 3, knots, knots, generator=torch.Generator().manual_seed(0))
    return interpolate(colours, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
