"""Motion hybrids: one thing while the picture moves, another at rest (Factorized Diffusion, arXiv 2404.11615)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from .component import Component

LENGTH = 7 / 64
"""Of the way, as a share of the short side: 7 px at 64, as published."""


@dataclass(frozen=True)
class Motion(Component):
    """The picture blurred along its diagonal, from top left to bottom right."""

    def part(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), blurred along the diagonal."""
        return _moved(x, LENGTH)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return RGB `image` (B, 3, H, W), faster and faster."""
        return _moved(image, t * LENGTH)


def _moved(x: Tensor, length: float) -> Tensor:
    """Return the mean of `x` (B, C, H, W) along a diagonal way of `length`, a share of the short side."""
    pixels = max(1.0, length * min(x.shape[-2:]))
    reach = ceil((pixels - 1) / 2)
    weights = [
        min(1.0, (pixels + 1) / 2 - abs(step)) for step in range(-reach, reach + 1)
    ]  # the ends in part
    bordered = pad(x, [reach] * 4, mode="reflect") if reach else x
    height, width = x.shape[-2:]
    steps = (weight * bordered[..., i : i + height, i : i + width] for i, weight in enumerate(weights))
    return sum(steps, torch.zeros_like(x)) / sum(weights)
