"""Pixel permutation: every pixel by itself goes anywhere (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sin

import torch
from torch import Tensor

from .moving import GREY
from .permutation import Permutation, seeded, shuffled

ARC = 0.3
"""How far a flight bends to the side, of its length."""


@dataclass(frozen=True)
class PixelPermutation(Permutation):
    """All pixels in an order that `seed` decides; one view of noise reads as another."""

    seed: int = 0

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that a latent's neighbours would be torn apart, and a picture would not follow."""
        return False

    def sources(self, height: int, width: int) -> Tensor:
        """Return (height, width), int64: where each pixel of the view comes from, as y * width + x."""
        return shuffled(height * width, seeded(self.seed)).reshape(height, width)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) with its pixels in the air, each on an arc; grey where there is none."""
        height, width = image.shape[-2:]
        source = self.sources(height, width).flatten()
        target = torch.arange(height * width)
        origin = torch.stack([source // width, source % width], 1)
        flight = torch.stack([target // width, target % width], 1) - origin
        place = origin + t * flight + ARC * sin(pi * t) * flight.flip(1) * torch.tensor([1, -1])
        y, x = place.round().long().unbind(1)
        seen = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        above = torch.full_like(source, -1)  # of several pixels at one place, the last lies above
        above = above.scatter_reduce(0, (y * width + x)[seen], source[seen], "amax").to(image.device)
        pixels = image.flatten(-2)[..., above.clamp(min=0)]
        return torch.where(above >= 0, pixels, torch.full_like(pixels, GREY)).reshape(image.shape)
