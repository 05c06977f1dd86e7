"""The picture as it is: the first reading of most anagrams."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .protocol import View


@dataclass(frozen=True)
class Identity(View):
    """v(x) = x."""

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that latents can be looked at as they are."""
        return True

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W)."""
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W)."""
        return x

    def frame(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W): nothing moves."""
        return image
