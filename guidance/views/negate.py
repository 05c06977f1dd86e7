"""Negate: the picture in negative (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .moving import Moving


@dataclass(frozen=True)
class Negate(Moving):
    """v(x) = -x, for tensors centred at 0; a picture in [0, 1] reads as 1 - x. It means nothing to a latent."""

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that the negative of a latent is not the latent of the negative."""
        return False

    def view(self, x: Tensor) -> Tensor:
        """Return -`x` (B, C, H, W)."""
        return -x

    def inverse(self, x: Tensor) -> Tensor:
        """Return -`x` (B, C, H, W)."""
        return -x

    def reading(self, image: Tensor) -> Tensor:
        """Return the negative of RGB `image` (B, 3, H, W) in [0, 1]."""
        return 1 - image
