"""Flips: the picture in a mirror, or upside down (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .moving import Moving, turned_over


@dataclass(frozen=True)
class Flip(Moving):
    """Left and right exchanged or, if `vertical`, top and bottom; it turns over like a card."""

    vertical: bool = False

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that latents can be flipped: whole cells move."""
        return True

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) flipped."""
        return x.flip(-2 if self.vertical else -1)

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) flipped back."""
        return self.view(x)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) as a card on its way to the other side."""
        return turned_over(image, t, self.vertical)
