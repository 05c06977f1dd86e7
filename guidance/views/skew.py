"""Skew: each column rolled down, the more the farther to the right (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .permutation import Permutation

FACTOR = 1.5
"""How many px further down than the column before; as published."""


@dataclass(frozen=True)
class Skew(Permutation):
    """Column i of w rolled down by int(1.5 (i - w / 2)), around the edge; cells of a latent would be cut."""

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that cells would be cut."""
        return False

    def sources(self, height: int, width: int) -> Tensor:
        """Return (height, width), int64: where each pixel of the view comes from, as y * width + x."""
        return _rolled(height, width, FACTOR)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) on its way, a part of the roll done."""
        source = _rolled(image.shape[-2], image.shape[-1], t * FACTOR).flatten().to(image.device)
        return image.flatten(-2)[..., source].reshape(image.shape)


def _rolled(height: int, width: int, factor: float) -> Tensor:
    shifts = (
        factor * (torch.arange(width, dtype=torch.float64) - width / 2)
    ).long()  # towards 0, as int() does
    return (torch.arange(height)[:, None] - shifts) % height * width + torch.arange(width)
