"""Gives a structure in the starting noise the contrast of what a model is going to paint.

A latent diffusion model reads its noise as a picture: it puts a dark object where the noise has the channels of dark,
and so the noise of a bright reference pushes a dark object away. Ours, in answer to that (tests/benchmarks/RESULTS.md).
With c(z) the contrast of a latent z (C, h, w), the mean of each channel inside of a part minus that outside:
    s = sum_c c(z)_c z_c        of the structure z and its salient part: one map, high where that part lies
    z'_c = sign(c(x0hat)_c) s   with x0hat the model's first estimate, its part the middle, where objects stand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .noise_statistics import standardised

WIDTH = 0.18  # standard deviation of "the middle", in sides of the picture


def middle(height: int, width: int) -> Tensor:
    """Return a bell around the middle of the picture, (1, 1, height, width) float32 in [0, 1]."""
    bells = [_bell(side) for side in (height, width)]
    return (bells[0][:, None] * bells[1])[None, None]


def contrast(latent: Tensor, inside: Tensor) -> Tensor:
    """Return the mean of `latent` (B, C, h, w) inside minus that outside, (B, C) float32.

    `inside` (1 or B, 1, h, w) in [0, 1] says how much each place is inside. Raises ValueError if nothing is, or all.
    """
    inside = inside.float()
    return _mean(latent, inside) - _mean(latent, 1 - inside)


def recontrasted(structure: Tensor, salient: Tensor, direction: Tensor) -> Tensor:
    """Return `structure` (B, C, h, w) with its salient part in the channels of `direction` (1, K): (B, K, h, w).

    `salient` (1 or B, 1, h, w) in [0, 1]: which part that is. The structure is read along its own contrast there, which
    leaves one map; each channel is this map, standardised, with the sign of `direction` (+ where that is 0). Float32.
    Raises ValueError if there is no salient part, or nothing but, or no contrast in the structure.
    """
    own = contrast(structure, salient)
    seen = (structure.float() * own[..., None, None]).sum(1, keepdim=True)
    signs = torch.where(direction < 0, -1.0, 1.0)
    return standardised(seen) * signs[..., None, None]


def _bell(side: int) -> Tensor:
    places = (torch.arange(side) + 0.5) / side - 0.5
    return (-(places / WIDTH).square() / 2).exp()


def _mean(latent: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of `latent` (B, C, h, w), weighted by `weight` (1 or B, 1, h, w) float32: (B, C)."""
    total = weight.sum((-2, -1))
    if not bool((total > 0).all()):
        raise ValueError(
            "The salient part is empty, or the whole picture, so it has no contrast. Choose another reference or "
            "label."
        )
    return (latent.float() * weight).sum((-2, -1)) / total
