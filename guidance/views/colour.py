"""Colour hybrids: one thing in dim light, another in colour (Factorized Diffusion, arXiv 2404.11615)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .component import Component, Rest


@dataclass(frozen=True)
class Grayscale(Component):
    """The mean of all channels, in each of them: an orthogonal projection. It means nothing to a latent."""

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that the channels of a latent are no colours."""
        return False

    def part(self, x: Tensor) -> Tensor:
        """Return the mean over channels of `x` (B, C, H, W), in C channels."""
        return x.mean(1, keepdim=True).expand_as(x)


@dataclass(frozen=True)
class Colour(Rest):
    """What grayscale leaves. Its reader looks at the picture itself, in bright light."""

    def reading(self, image: Tensor) -> Tensor:
        """Return `image` (B, 3, H, W): in colour."""
        return image
